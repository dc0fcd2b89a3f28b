# SPDX-License-Identifier: Apache-2.0
"""Texts in which a model goes round in circles."""

from collections.abc import Sequence


def repetition_start(tokens: Sequence[int], first: int, repeat: int) -> int:
    """The place from which a text written from `first` on says over again `repeat` tokens in a row; else its length.

    Greedy decoding of a small target soon repeats itself without end, and a drafter has nothing to learn from the
    second round. What was written before `first`, the prompt, may be said again. A `repeat` of 0 finds no loop.
    """
    if repeat:
        said = set()
        for place in range(first, len(tokens) - repeat + 1):
            passage = tuple(tokens[place : place + repeat])
            if passage in said:
                return place
            said.add(passage)
    return len(tokens)
