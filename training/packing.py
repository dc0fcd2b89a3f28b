# SPDX-License-Identifier: Apache-2.0
"""Examples packed whole into windows of a fixed length, with the borders between them kept."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from training.examples import Example

# Windows held open at a time. More fill a little better and cost time in proportion.
OPEN_WINDOWS = 64


@dataclass(frozen=True)
class PackedWindows:
    """Windows of tokens in which several documents stand one after the other, padding at the end.

    Padding counts as one more document, without loss.
    """

    tokens: Tensor  # [B, L] int64
    loss: Tensor  # [B, L] bool: this token is to be learned
    start: Tensor  # [B, L] int64: where in the window the token's document begins

    def __post_init__(self) -> None:
        if not self.tokens.shape == self.loss.shape == self.start.shape or self.tokens.dim() != 2:
            shapes = f"{self.tokens.shape}, {self.loss.shape} and {self.start.shape}"
            raise ValueError(f"packed windows need tokens, loss and start [B, L], got {shapes}")

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def positions(self) -> Tensor:
        """Each token's position in its own document, for the target's rotary embedding and mask. [B, L]"""
        return torch.arange(self.tokens.shape[1], device=self.start.device) - self.start

    @property
    def valid(self) -> Tensor:
        """Whether the prediction made *after* a token counts: the next token is of its document and has loss. [B, L]"""
        valid = torch.zeros_like(self.loss)
        valid[:, :-1] = self.loss[:, 1:] & (self.start[:, 1:] == self.start[:, :-1])
        return valid

    def terms(self, depth: int, first: int, last: int) -> Tensor:
        """Which context positions first <= p < last count at a depth. [B, last - first] bool

        At position p and depth t >= 1 the drafter, with the target's hidden state at p, has been fed x_{p+1}..x_{p+t}
        and predicts x_{p+t+1}: that token must carry loss, and all of p..p+t+1 be of one document.

        Raises:
            ValueError: the predicted tokens leave the window.
        """
        ahead = depth + 1
        if depth < 1 or not 0 <= first <= last <= self.tokens.shape[1] - ahead:
            raise ValueError(f"positions [{first}, {last}) at depth {depth} do not fit {self.tokens.shape[1]} tokens")
        predicted = slice(first + ahead, last + ahead)
        return self.loss[:, predicted] & (self.start[:, predicted] == self.start[:, first:last])

    def to(self, device: torch.device) -> "PackedWindows":
        return PackedWindows(self.tokens.to(device), self.loss.to(device), self.start.to(device))


def plan_windows(lengths: Sequence[int], length: int, seed: int) -> list[tuple[int, ...]]:
    """Which examples share a window: each index in exactly one, in random order, the windows in random order too.

    Each example goes, in the order of the shuffle, into the fullest open window that still has room for it.

    Raises:
        ValueError: an example is empty or longer than a window.
    """
    for index, size in enumerate(lengths):
        if not 1 <= size <= length:
            raise ValueError(f"example {index} has {size} tokens and windows have {length}")
    rng = random.Random(seed)
    order = list(range(len(lengths)))
    rng.shuffle(order)
    closed: list[list[int]] = []
    opened: list[tuple[int, list[int]]] = []  # (room left, members)
    for index in order:
        fitting = [slot for slot, (room, _) in enumerate(opened) if room >= lengths[index]]
        if fitting:
            room, members = opened.pop(min(fitting, key=lambda slot: opened[slot][0]))
            members.append(index)
        else:
            if len(opened) == OPEN_WINDOWS:
                closed.append(opened.pop(min(range(OPEN_WINDOWS), key=lambda slot: opened[slot][0]))[1])
            room, members = length, [index]
        opened.append((room - lengths[index], members))
    windows = [tuple(members) for members in closed + [members for _, members in opened]]
    rng.shuffle(windows)
    return windows


class Packing:
    """Examples packed into windows of `length` tokens; window by number, so that training can resume anywhere."""

    def __init__(self, examples: Sequence[Example], length: int, seed: int, pad: int = 0) -> None:
        """
        Raises:
            ValueError: there are no examples, or one is longer than a window.
        """
        if not examples:
            raise ValueError("there are no examples to pack")
        self.length = length
        self.windows = plan_windows([len(example) for example in examples], length, seed)
        self._examples = examples
        self._pad = pad

    def __len__(self) -> int:
        return len(self.windows)

    @property
    def fill(self) -> float:
        """The fraction of the windows' tokens that is not padding."""
        return sum(map(len, self._examples)) / (len(self.windows) * self.length)

    def rows(self, numbers: Sequence[int]) -> PackedWindows:
        """The windows of these numbers. B = len(numbers)"""
        shape = (len(numbers), self.length)
        tokens = torch.full(shape, self._pad, dtype=torch.long)
        loss = torch.zeros(shape, dtype=torch.bool)
        start = torch.zeros(shape, dtype=torch.long)
        for row, number in enumerate(numbers):
            begin = 0
            for index in self.windows[number]:
                example = self._examples[index]
                end = begin + len(example)
                tokens[row, begin:end] = example.tokens
                loss[row, begin:end] = example.loss
                start[row, begin:end] = begin
                begin = end
            start[row, begin:] = begin
        return PackedWindows(tokens, loss, start)
