# SPDX-License-Identifier: Apache-2.0
"""The trees that a drafter draws while a target answers a prompt, and what the target accepts of them.

The target answers greedily first; then one pass gives its hidden states, and every step of decoding is replayed: a
root, the tree drawn from it, the path that the answer takes in it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from redrafter_vllm.checkpoint.io import check_against_target, check_checkpoint
from redrafter_vllm.config import DraftingConfig
from redrafter_vllm.drafting.propose import propose_trees
from redrafter_vllm.drafting.tree import DraftTree
from redrafter_vllm.model.drafter import Drafter


@dataclass(frozen=True)
class Node:
    """A draft token below the root or another node."""

    text: str
    parent: int  # −1 under the root
    probability: float  # that the drafter gives it after its parent
    reached: float  # of the whole path
    accepted: bool


@dataclass(frozen=True)
class Step:
    """One step of decoding: what the target emits is the accepted nodes and one token more, the next root."""

    root: str
    nodes: tuple[Node, ...]
    next_root: str | None  # None behind the end of the answer

    @property
    def accepted(self) -> int:
        return sum(node.accepted for node in self.nodes)

    def children(self, parent: int) -> list[int]:
        """Indices of the nodes below `parent`, the most probable first."""
        return [index for index, node in enumerate(self.nodes) if node.parent == parent]


class Artist:
    """A target with its drafter, in float32 on the CPU.

    Raises OSError or ValueError where the target cannot be read, CheckpointError where the drafter cannot or does not
    fit it.
    """

    def __init__(self, target: str, drafter: Path, drafting: DraftingConfig) -> None:
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

        sizes = AutoConfig.from_pretrained(target).get_text_config()
        check_against_target(check_checkpoint(drafter), hidden_size=sizes.hidden_size, vocab_size=sizes.vocab_size)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(target)
        self.model: Any = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32).eval()
        self.drafter = Drafter.from_pretrained(drafter)
        self.drafting = drafting

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
    def draw(self, prompt: Sequence[int], max_tokens: int) -> list[Step]:
        """The steps of decoding up to `max_tokens` tokens behind the prompt; the first comes with the prompt's pass.

        Raises ValueError where the target ends its answer before the second token.
        """
        ids = torch.tensor([list(prompt)])
        mask = torch.ones_like(ids)
        answer = self.model.generate(ids, attention_mask=mask, max_new_tokens=max_tokens, do_sample=False)[0]
        hidden = self._hidden(answer)
        steps, root = [], len(prompt)
        while root < len(answer) - 1:
            tree = self._tree(hidden[root - 1], answer[root])
            step = self._step(tree, answer, root)
            steps.append(step)
            root += step.accepted + 1
        if not steps:
            raise ValueError("the target ends its answer before the second token: nothing is drafted for this prompt")
        return steps

    def _hidden(self, text: Tensor) -> Tensor:  # [n] -> [n, H]
        """What the LM head gets at every position."""
        caught: list[Tensor] = []
        head: nn.Module = self.model.get_output_embeddings()
        handle = head.register_forward_pre_hook(lambda module, args: caught.append(args[0]))
        try:
            self.model(text[None])
        finally:
            handle.remove()
        return caught[0][0]

    def _tree(self, context: Tensor, root: Tensor) -> DraftTree:
        embedding = self.model.get_input_embeddings().weight
        limit = torch.tensor([self.drafting.beam_width])
        return propose_trees(self.drafter, embedding, context[None], root[None], limit, self.drafting)

    def _step(self, tree: DraftTree, answer: Tensor, root: int) -> Step:
        count = int(tree.num_nodes[0])
        tokens, parents = tree.tokens[0, :count].tolist(), tree.parents[0, :count].tolist()
        depths, reached = tree.depths[0, :count].tolist(), tree.log_probs[0, :count].exp().tolist()
        said = answer[root + 1 :].tolist()
        nodes: list[Node] = []
        for token, parent, depth, probability in zip(tokens, parents, depths, reached, strict=True):
            above = reached[parent] if parent >= 0 else 1.0
            accepted = depth <= len(said) and token == said[depth - 1] and (parent < 0 or nodes[parent].accepted)
            own = probability / above if above > 0 else 0.0
            nodes.append(Node(self._text(token), parent, own, probability, accepted))
        place = root + 1 + sum(node.accepted for node in nodes)
        next_root = self._text(int(answer[place])) if place < len(answer) else None
        return Step(self._text(int(answer[root])), tuple(nodes), next_root)

    def _text(self, token: int) -> str:
        decode: Callable[..., str] = self.tokenizer.decode
        return decode([token], clean_up_tokenization_spaces=False)


def tokens_per_step(steps: Sequence[Step]) -> float:
    """Emitted tokens by step: the first root came with the prompt."""
    emitted = sum(step.accepted + (step.next_root is not None) for step in steps)
    return emitted / len(steps)
