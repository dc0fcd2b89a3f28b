# SPDX-License-Identifier: Apache-2.0
"""Whole examples packed into windows of a fixed length, with a document id for each."""

import random
from collections.abc import Sequence

import torch

from redrafter_training.data.tokenize import Example
from redrafter_training.data.windows import Windows

# Windows that are open at a time: more of them fill a little better and take proportionally more time.
OPEN_WINDOWS = 64


def arrange(rows: Sequence[Sequence[Example]], length: int, pad: int = 0) -> Windows:
    """Each row's examples one after the other, padding at the end. [B, length]

    A position is in the loss mask if the next token is of the same example and carries loss.

    Raises:
        ValueError: the examples of a row do not fit into it.
    """
    shape = (len(rows), length)
    tokens = torch.full(shape, pad, dtype=torch.long)
    loss_mask = torch.zeros(shape, dtype=torch.bool)
    doc_ids = torch.full(shape, -1, dtype=torch.long)
    for row, examples in enumerate(rows):
        begin = 0
        for number, example in enumerate(examples):
            end = begin + len(example)
            if end > length:
                raise ValueError(f"{sum(map(len, examples))} tokens do not fit a row of {length}")
            tokens[row, begin:end] = example.tokens
            loss_mask[row, begin : end - 1] = example.loss_mask[1:]
            doc_ids[row, begin:end] = number
            begin = end
    return Windows(tokens, loss_mask, doc_ids)


def plan_windows(lengths: Sequence[int], length: int, seed: int) -> list[tuple[int, ...]]:
    """The examples of each window: each index once; windows and their members are in random order.

    Each example goes, in shuffled order, into the fullest open window that still has room for it.

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
    """Examples packed into windows of `length` tokens; read by number, so that training can resume anywhere."""

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
        """The fraction of the windows' positions that are not padding."""
        return sum(map(len, self._examples)) / (len(self.windows) * self.length)

    def members(self, number: int) -> list[Example]:
        """The examples of one window, in order."""
        return [self._examples[index] for index in self.windows[number]]

    def rows(self, numbers: Sequence[int]) -> Windows:
        """The windows with these numbers. B = len(numbers)"""
        return arrange([self.members(number) for number in numbers], self.length, self._pad)
