# SPDX-License-Identifier: Apache-2.0
"""Tokens per step that a drafter reaches, computed without a serving engine.

Exact verification emits what the target would emit without drafts. So the target's text is generated first, and then
the decoding steps are counted that drafting would have needed for it: at every position the beams are searched, packed
into a tree and compared with the text.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from redrafter_training.target.model import TargetModel
from redrafter_vllm.config import MAX_BEAM_LENGTH, MAX_BEAM_WIDTH, MAX_NODES, DraftingConfig
from redrafter_vllm.drafting.beam_search import Beams, beam_search
from redrafter_vllm.drafting.tree import DraftTree
from redrafter_vllm.model.interface import DrafterInterface
from redrafter_vllm.ops.graft_copies import Texts


@dataclass(frozen=True)
class Drafting:
    """The shape of one drafting round."""

    beam_width: int = 4
    beam_length: int = 4
    max_nodes: int = 16
    prompt_lookup: bool = False  # also copies of the text, as in serving: see `ops.graft_copies`

    def __post_init__(self) -> None:
        if min(self.beam_width, self.beam_length, self.max_nodes) < 1:
            raise ValueError(f"beam_width, beam_length and max_nodes must be at least 1, got {self}")
        if self.beam_width > MAX_BEAM_WIDTH or self.beam_length > MAX_BEAM_LENGTH:
            raise ValueError(
                f"beam_width must be at most {MAX_BEAM_WIDTH} and beam_length at most {MAX_BEAM_LENGTH}, as in "
                f"serving, got {self.beam_width} and {self.beam_length}"
            )

    @property
    def max_depth(self) -> int:
        """The most draft tokens that a step can accept: more than `beam_length` where copies of the text are longer."""
        shape = self.beam_width, self.beam_length, min(self.max_nodes, MAX_NODES)
        return DraftingConfig(*shape, prompt_lookup=self.prompt_lookup).max_depth


@dataclass(frozen=True)
class Acceptance:
    """Acceptance of draft tokens on some texts."""

    tokens_per_step: float  # emitted tokens / verification steps; 1 without drafts
    acceptance_by_depth: tuple[float, ...]  # fraction of steps that accepted a draft token of depth 1..T
    steps: int
    tokens: int


def accepted_depths(tree: DraftTree, future: Tensor) -> Tensor:
    """The number of tokens of `future` [B, T], those after the root, that form a path of the tree. [B]"""
    return (tree.depths * graded_nodes(tree, future)[1]).amax(dim=1)


def graded_nodes(tree: DraftTree, future: Tensor) -> tuple[Tensor, Tensor]:
    """Whether the walk along `future` [B, T] gets to a node's parent, and whether it accepts the node. [B, N] each"""
    on_path = torch.zeros_like(tree.tokens, dtype=torch.bool)
    is_graded = torch.zeros_like(on_path)
    for node in range(tree.tokens.shape[1]):
        parent, depth = tree.parents[:, node], tree.depths[:, node]
        inside = (node < tree.num_nodes) & (depth <= future.shape[1])
        expected = future.gather(1, (depth - 1).clamp(0, future.shape[1] - 1)[:, None])[:, 0]
        reached = (parent < 0) | on_path.gather(1, parent.clamp(min=0)[:, None])[:, 0]
        is_graded[:, node] = inside & reached
        on_path[:, node] = is_graded[:, node] & (tree.tokens[:, node] == expected)
    return is_graded, on_path


@torch.inference_mode()
def accepted_everywhere(
    target: TargetModel, drafter: DrafterInterface, hidden: Tensor, text: Tensor, start: int, drafting: Drafting
) -> Tensor:
    """Accepted draft tokens of a step at context p, for each p >= `start - 1` with its root p + 1 in `text` [n].

    `hidden` [n, H] are the target's hidden states of the text.
    """
    beams, future = drafted_everywhere(target, drafter, hidden, text, start, drafting)
    return accepted_depths(DraftTree.from_beams(beams, drafting.max_nodes), future)


def drafted_everywhere(
    target: TargetModel, drafter: DrafterInterface, hidden: Tensor, text: Tensor, start: int, drafting: Drafting
) -> tuple[Beams, Tensor]:
    """The beams of a step at each position, as in `accepted_everywhere`, and the text after each root, [roots, T]."""
    roots = text[start:]
    beams = beam_search(
        drafter,
        target.embedding,
        hidden[start - 1 : -1],
        roots,
        beam_width=drafting.beam_width,
        beam_length=drafting.beam_length,
    )
    if drafting.prompt_lookup:
        # Each root's text ends with it. As in serving, int32, for which a CPU has a kernel.
        ends = torch.arange(start + 1, len(text) + 1, dtype=torch.int32, device=text.device)
        so_far = Texts(text.int().expand(len(roots), -1), ends)
        rows = torch.arange(len(roots), device=text.device)
        beams = beams.with_copies(so_far, rows, drafting.max_depth)
    # Past the end of the text nothing can be accepted: no token has id -1.
    padded = torch.cat([text[start + 1 :], text.new_full((drafting.max_depth,), -1)])
    return beams, padded.unfold(0, drafting.max_depth, 1)[: len(roots)]


def count_steps(accepted: Sequence[int]) -> list[int]:
    """The accepted draft tokens of each step that decoding takes; `accepted[i]` is the number for root i.

    The first root is the output of the prompt's forward pass. A step verifies a root's draft tokens and emits the
    accepted ones and one more token, the next root.
    """
    made, root = [], 0
    while root < len(accepted) - 1:
        made.append(accepted[root])
        root += accepted[root] + 1
    return made


def measure(
    target: TargetModel, drafter: DrafterInterface, texts: Sequence[tuple[Tensor, int]], drafting: Drafting
) -> Acceptance:
    """Acceptance over `texts`: each a prompt with its continuation [n], and the prompt's length.

    Raises:
        ValueError: no text has a continuation of at least two tokens.
    """
    return measure_each(target, drafter, texts, [drafting])[0]


def measure_each(
    target: TargetModel,
    drafter: DrafterInterface,
    texts: Sequence[tuple[Tensor, int]],
    draftings: Sequence[Drafting],
    *,
    quiet: bool = True,
) -> list[Acceptance]:
    """`measure` of several shapes; the target reads each text once. `quiet` shows no progress bar."""
    counted = counted_steps(target, drafter, texts, draftings, quiet=quiet)
    return [summarise(steps, drafting) for steps, drafting in zip(counted, draftings, strict=True)]


@dataclass(frozen=True)
class CountedSteps:
    """The steps that decoding takes for one text."""

    accepted: list[int]  # draft tokens, by step
    tokens: int  # emitted


def counted_steps(
    target: TargetModel,
    drafter: DrafterInterface,
    texts: Sequence[tuple[Tensor, int]],
    draftings: Sequence[Drafting],
    *,
    quiet: bool = True,
) -> list[list[CountedSteps]]:
    """For each shape the steps of each text; arguments as those of `measure_each`."""
    by_text = [
        counted_steps_of_each(target, drafter, text.to(target.device), start, draftings)
        for text, start in tqdm(texts, desc="tokens per step", unit="text", disable=quiet)
    ]
    return [[steps[shape] for steps in by_text] for shape in range(len(draftings))]


def counted_steps_of_each(
    target: TargetModel, drafter: DrafterInterface, text: Tensor, start: int, draftings: Sequence[Drafting]
) -> list[CountedSteps]:
    """For each shape the steps for `text` [n] behind its prompt of `start` tokens, from one pass of the target.

    There are none where fewer than two tokens follow the prompt.
    """
    if len(text) - start < 2:
        return [CountedSteps([], 0) for _ in draftings]
    hidden = target.hidden(text[None])[0]
    everywhere = [accepted_everywhere(target, drafter, hidden, text, start, drafting) for drafting in draftings]
    return [CountedSteps(count_steps(accepted.tolist()), len(text) - start - 1) for accepted in everywhere]


def summarise(texts: Sequence[CountedSteps], drafting: Drafting) -> Acceptance:
    """Acceptance over the steps of some texts.

    Raises:
        ValueError: there are none.
    """
    made = [accepted for text in texts for accepted in text.accepted]
    if not made:
        raise ValueError("no text to measure on")
    emitted = sum(text.tokens for text in texts)
    by_depth = tuple(sum(a >= d for a in made) / len(made) for d in range(1, drafting.max_depth + 1))
    return Acceptance(emitted / len(made), by_depth, len(made), emitted)
