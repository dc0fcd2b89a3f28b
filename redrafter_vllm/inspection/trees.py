# SPDX-License-Identifier: Apache-2.0
"""Draft trees as they are shown: what the drafter expected of each token, and what the target said there."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Choice:
    """The token that the target emits at a place in a text."""

    text: str
    probability: float  # the target's own


@dataclass(frozen=True)
class Node:
    """A draft token below the root or another node."""

    text: str
    parent: int  # −1 under the root
    drafter: float | None  # the drafter's probability for it after its parent; None for a copy of the text
    survival: float  # as serving estimates it: the probability that it and all tokens above it are accepted
    target: float  # the target's probability for it after its parent
    says: Choice  # what the target emits after it, also where it is not accepted
    accepted: bool


@dataclass(frozen=True)
class Step:
    """One step of decoding: what the target emits is the accepted nodes and one token more, the next root."""

    root: str
    says: Choice  # what the target emits after the root
    nodes: tuple[Node, ...]
    next_root: str | None  # None behind the end of the answer

    @property
    def accepted(self) -> int:
        return sum(node.accepted for node in self.nodes)

    def children(self, parent: int) -> list[int]:
        """Indices of the nodes below `parent`, the one that is likeliest to survive first."""
        return [index for index, node in enumerate(self.nodes) if node.parent == parent]


@dataclass(frozen=True)
class Drawing:
    """The steps of decoding of an answer."""

    steps: Sequence[Step]
    calibration: str  # a phrase on what the survival of its nodes is estimated from

    @property
    def tokens_per_step(self) -> float:
        """Emitted tokens by step: the first root came with the prompt."""
        emitted = sum(step.accepted + (step.next_root is not None) for step in self.steps)
        return emitted / len(self.steps)

    @property
    def rate(self) -> str:
        """The same as a phrase."""
        return f"{self.tokens_per_step:.2f} tokens per step in {len(self.steps)} steps"
