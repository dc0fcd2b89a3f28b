# SPDX-License-Identifier: Apache-2.0
"""Draws the trees of a drafter while its target answers a prompt greedily, step by step as in serving.

Every step is: a root, which the target has emitted; the tree drawn from it; one pass of the target over the paths of
the tree, which gives what it says at every node, also at those that it does not accept; the accepted path.
"""

from collections.abc import Callable, Collection, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from redrafter_vllm.adaptive.stored import stored_calibration
from redrafter_vllm.adaptive.survival import Coefficients, SurvivalEstimator
from redrafter_vllm.checkpoint.io import check_against_target, check_checkpoint
from redrafter_vllm.config import DraftingConfig
from redrafter_vllm.drafting.beam_search import beam_search
from redrafter_vllm.drafting.tree import DraftTree
from redrafter_vllm.inspection.fit import MAX_VOCAB_PADDING
from redrafter_vllm.inspection.trees import Choice, Drawing, Node, Step
from redrafter_vllm.model.drafter import Drafter
from redrafter_vllm.ops.graft_copies import Texts
from redrafter_vllm.ops.survival import log_odds_given_parent

ROOT = -1  # the parent of the nodes under the root


@dataclass(frozen=True)
class _Tree:
    """A draft tree on the host."""

    tokens: list[int]  # [N]
    parents: list[int]  # [N]
    drafter: list[float | None]  # [N], as in `Node`
    survival: list[float]  # [N]

    def path(self, node: int) -> list[int]:
        """Nodes from the root down to `node`."""
        return [] if node == ROOT else [*self.path(self.parents[node]), node]

    def walk(self, choices: Sequence[int]) -> list[int]:
        """The accepted nodes; `choices` [1 + N] are the target's tokens behind the root and behind each node."""
        path: list[int] = []
        at: int | None = ROOT
        while at is not None:
            wanted = choices[1 + at]
            children = (node for node, parent in enumerate(self.parents) if parent == at)
            at = next((node for node in children if self.tokens[node] == wanted), None)
            path += [] if at is None else [at]
        return path


class Artist:
    """A target with its drafter, in float32 on the CPU.

    Raises OSError or ValueError where the target cannot be read, CheckpointError where the drafter cannot or does not
    fit it.
    """

    def __init__(self, target: str, drafter: Path, drafting: DraftingConfig) -> None:
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

        sizes = AutoConfig.from_pretrained(target).get_text_config()
        check_against_target(
            check_checkpoint(drafter),
            hidden_size=sizes.hidden_size,
            vocab_size=sizes.vocab_size,
            allowed_padding=MAX_VOCAB_PADDING,
        )
        self.tokenizer: Any = AutoTokenizer.from_pretrained(target)
        self.model: Any = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32).eval()
        self.drafter = Drafter.from_pretrained(drafter)
        self.drafting = drafting
        self.calibration = stored_calibration(drafter)
        nodes, length = drafting.num_speculative_tokens, drafting.beam_length
        self._survival = SurvivalEstimator(
            1, nodes, length, torch.device("cpu"), self.calibration, copies=drafting.copies_text
        )

    def encode(self, prompt: str, *, chat: bool) -> list[int]:
        """Token ids of `prompt`, as a user's turn in the target's chat template if `chat`."""
        if not chat:
            return list(self.tokenizer(prompt)["input_ids"])
        turns = [{"role": "user", "content": prompt}]
        rendered = self.tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)
        return list(rendered["input_ids"])

    @property
    def has_chat_template(self) -> bool:
        return getattr(self.tokenizer, "chat_template", None) is not None

    @torch.inference_mode()
    def draw(self, prompt: Sequence[int], max_tokens: int) -> Drawing:
        """The steps of decoding up to `max_tokens` tokens behind the prompt; the first comes with the prompt's pass.

        Raises ValueError where the target ends its answer before the second token.
        """
        ends, text = self._end_tokens(), _Text(self.model)
        hidden, logits = text.read(prompt)
        root, room = int(logits[-1].argmax()), max_tokens - 1
        so_far = [*prompt, root]
        steps: list[Step] = []
        while room > 0 and root not in ends:
            tree = self._tree(hidden[-1], so_far)
            log_probs = text.verified(root, tree).log_softmax(-1)
            choices = log_probs.argmax(-1).tolist()
            path = tree.walk(choices)
            emitted = _until_end([choices[1 + node] for node in (ROOT, *path)], room, ends)
            steps.append(self._step(tree, root, log_probs, path[: len(emitted)], emitted))
            hidden, _ = text.read([root, *(tree.tokens[node] for node in path)])
            root, room = emitted[-1], room - len(emitted)
            so_far += emitted
        if not steps:
            raise ValueError("the target ends its answer before the second token: nothing is drafted for this prompt")
        return Drawing(steps, _described(self.calibration))

    def _end_tokens(self) -> set[int]:
        found = self.model.generation_config.eos_token_id
        return set() if found is None else {found} if isinstance(found, int) else set(found)

    def _tree(self, context: Tensor, text: Sequence[int]) -> _Tree:
        """The nodes that are likeliest to survive, as where serving adapts its trees; the text ends with the root."""
        row = torch.tensor([0])
        own = beam_search(
            self.drafter,
            self.model.get_input_embeddings().weight,
            context[None],
            torch.tensor([text[-1]]),
            beam_width=self.drafting.beam_width,
            beam_length=self.drafting.beam_length,
        )
        beams = own
        if self.drafting.copies_text:
            texts = Texts(torch.tensor([list(text)], dtype=torch.int32), torch.tensor([len(text)], dtype=torch.int32))
            beams = own.with_copies(texts, row, self.drafting.max_depth)
        tree = DraftTree.from_beams(beams, self.drafting.num_speculative_tokens, None, self._survival.rank(beams, row))
        count, width = int(tree.num_nodes[0]), beams.tokens.shape[2]
        step, beam = tree.beams[0, :count] // width, tree.beams[0, :count] % width
        given_parent = log_odds_given_parent(own.log_probs, own.parents)[0].sigmoid().tolist()
        drafter = [
            given_parent[at][which] if which < self.drafting.beam_width else None
            for at, which in zip(step.tolist(), beam.tolist(), strict=True)
        ]
        tokens, parents = (part[0, :count].tolist() for part in (tree.tokens, tree.parents))
        return _Tree(tokens, parents, drafter, tree.log_probs[0, :count].exp().tolist())

    def _step(self, tree: _Tree, root: int, log_probs: Tensor, path: Collection[int], emitted: Sequence[int]) -> Step:
        said = [
            Choice(self._text(int(token)), float(log_prob.exp()))
            for log_prob, token in zip(*log_probs.max(-1), strict=True)
        ]
        nodes: list[Node] = []
        for node, (token, parent) in enumerate(zip(tree.tokens, tree.parents, strict=True)):
            target = float(log_probs[1 + parent, token].exp())
            own = tree.drafter[node], tree.survival[node]
            nodes.append(Node(self._text(token), parent, *own, target, said[1 + node], node in path))
        next_root = self._text(emitted[-1]) if len(emitted) > len(path) else None
        return Step(self._text(root), said[0], tuple(nodes), next_root)

    def _text(self, token: int) -> str:
        decode: Callable[..., str] = self.tokenizer.decode
        return decode([token], clean_up_tokenization_spaces=False)


class _Text:
    """A text that the target has read."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._cache: Any = None

    def read(self, tokens: Sequence[int]) -> tuple[Tensor, Tensor]:  # [n, H], [n, V]
        """Append tokens: the input of the LM head, and the logits, at each of them."""
        hidden, logits, self._cache = self._run(torch.tensor([list(tokens)]), self._cache)
        return hidden[0], logits[0]

    def verified(self, root: int, tree: _Tree) -> Tensor:  # [1 + N, V]
        """The logits behind the root and behind each node of its tree, which are not appended."""
        leaves = [node for node in range(len(tree.tokens)) if node not in tree.parents]
        rows = [tree.path(leaf) for leaf in leaves]
        # Padding behind a path changes nothing before it.
        ids = torch.zeros(len(rows), 1 + max(map(len, rows)), dtype=torch.int64)
        ids[:, 0] = root
        place = {ROOT: (0, 0)}
        for row, path in enumerate(rows):
            for depth, node in enumerate(path, 1):
                ids[row, depth] = tree.tokens[node]
                place[node] = (row, depth)
        cache = deepcopy(self._cache)
        cache.batch_repeat_interleave(len(rows))
        _, logits, _ = self._run(ids, cache)
        return torch.stack([logits[place[node]] for node in range(ROOT, len(tree.tokens))])

    def _run(self, ids: Tensor, cache: Any) -> tuple[Tensor, Tensor, Any]:
        caught: list[Tensor] = []
        head: nn.Module = self._model.get_output_embeddings()
        handle = head.register_forward_pre_hook(lambda module, args: caught.append(args[0]))
        try:
            output = self._model(ids, past_key_values=cache, use_cache=True)
        finally:
            handle.remove()
        return caught[0], output.logits, output.past_key_values


def _until_end(tokens: Sequence[int], room: int, ends: Collection[int]) -> list[int]:
    """The tokens that a step emits before the answer ends: at most `room`, and none behind an end token."""
    kept = list(tokens[:room])
    first = next((place for place, token in enumerate(kept) if token in ends), len(kept))
    return kept[: first + 1]


def _described(calibration: Coefficients | None) -> str:
    if calibration is None:
        return "the drafter's probability of the whole path, as its training has stored no calibration"
    intercepts = ", ".join(f"{value:+.2f}" for value in calibration.intercepts)
    by_depth = f", plus {intercepts} by depth" if intercepts else ""
    return f"calibrated by the drafter's training (log-odds times {calibration.slope:.2f}{by_depth})"
