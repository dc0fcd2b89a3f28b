# SPDX-License-Identifier: Apache-2.0
"""What a server streamed for a prompt, step by step, on the clock of its first step."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from redrafter_vllm.chat.answers import Figures, Piece

UNRECEIVED_STEPS = 2  # steps behind the answer's end: with asynchronous scheduling, or an end token that is not sent


@dataclass(frozen=True)
class Tree:
    """The draft tree that a step verified."""

    root: str
    nodes: tuple[str, ...]
    parents: tuple[int, ...]  # −1 under the root
    path: tuple[int, ...]  # accepted nodes, from the root down

    def depth(self, node: int) -> int:
        """1 for a child of the root."""
        return 1 if self.parents[node] < 0 else 1 + self.depth(self.parents[node])


@dataclass(frozen=True)
class Step:
    """What one step of the engine emitted."""

    seconds: float  # since the first step
    texts: tuple[str, ...]  # of each token
    tree: Tree | None = None

    @property
    def num_drafts(self) -> int:
        """Accepted drafts, the first of the tokens: all but the last, unless the answer ended within the path."""
        return len(self.texts) - 1 if self.tree is None else min(len(self.tree.path), len(self.texts))


@dataclass
class Recording:
    """One side of the comparison; `steps` grows while the answer streams."""

    title: str
    steps: list[Step] = field(default_factory=list)
    ended: bool = False
    no_trees: str = ""  # why no step has a tree
    joined: list[Step] = field(default_factory=list)  # with their trees, while these are read as it streams

    def until(self, seconds: float = math.inf) -> list[Step]:
        """The steps that had ended by then."""
        return [step for step in list(self.steps) if step.seconds <= seconds]

    def figures(self, seconds: float = math.inf) -> Figures:
        """Counts of the steps that had ended by then."""
        figures = Figures()
        for step in self.until(seconds):
            figures.add(Piece(step.texts), step.seconds)
        return figures

    @property
    def duration(self) -> float:
        """Seconds from the first step to the last."""
        return self.steps[-1].seconds if self.steps else 0.0

    @property
    def tokens(self) -> list[str]:
        """The text of each token."""
        return [text for step in self.steps for text in step.texts]


@dataclass(frozen=True)
class VerifiedTree:
    """A tree as an engine reports it, with texts."""

    nodes: tuple[str, ...]
    parents: tuple[int, ...]
    path: tuple[int, ...]
    num_emitted: int


def with_trees(steps: Sequence[Step], verified: Sequence[VerifiedTree]) -> list[Step] | None:
    """The steps as the engine made them: a stream may bring two of them at once.

    Args:
        steps: As they arrived. The first one is the prompt's pass, which verifies nothing.
        verified: Of all steps of the request, in order. The first one that emits a token is the prompt's last.

    Returns:
        None where the numbers of tokens do not fit.
    """
    num_texts = sum(len(step.texts) for step in steps)
    trees, ends = _decoding(verified)
    surplus = sum(end >= num_texts for end in ends) - 1  # steps behind the one with the last token
    if not 0 <= surplus <= UNRECEIVED_STEPS:
        return None
    return _joined(steps, trees, ends)


def steps_so_far(steps: Sequence[Step], verified: Sequence[VerifiedTree]) -> list[Step]:
    """The same of an answer that still streams: the steps of which both tokens and tree have come."""
    steps = list(steps)  # more may arrive meanwhile
    num_texts = sum(len(step.texts) for step in steps)
    trees, ends = _decoding(verified)
    num_complete = sum(end <= num_texts for end in ends[1:])
    return _joined(steps, trees[:num_complete], ends[: num_complete + 1]) if steps else []


def _decoding(verified: Sequence[VerifiedTree]) -> tuple[list[VerifiedTree], list[int]]:
    """The trees behind the prompt's, and how many tokens there are before each and at the end."""
    trees = [tree for tree in verified if tree.num_emitted > 0][1:]
    return trees, list(accumulate((tree.num_emitted for tree in trees), initial=1))


def _joined(steps: Sequence[Step], trees: Sequence[VerifiedTree], ends: Sequence[int]) -> list[Step]:
    texts = [text for step in steps for text in step.texts]
    arrived = [step.seconds for step in steps for _ in step.texts]
    found = [Step(arrived[0], tuple(texts[:1]))]
    for begin, end, tree in zip(ends, ends[1:], trees, strict=False):
        if begin >= len(texts):
            break
        own = tuple(texts[begin:end])
        found.append(Step(arrived[begin + len(own) - 1], own, _drawn(tree, texts[begin - 1], own)))
    return found


def _drawn(tree: VerifiedTree, root: str, emitted: Sequence[str]) -> Tree:
    """The tree; accepted nodes have their text as it was streamed, with blanks that a token alone may lack."""
    nodes = list(tree.nodes)
    for node, text in zip(tree.path, emitted, strict=False):
        nodes[node] = text
    return Tree(root, tuple(nodes), tree.parents, tree.path)


def shared_tokens(one: Recording, other: Recording) -> int:
    """How many tokens both answers begin with."""
    pairs = zip(one.tokens, other.tokens, strict=False)
    return next((index for index, (a, b) in enumerate(pairs) if a != b), min(len(one.tokens), len(other.tokens)))
