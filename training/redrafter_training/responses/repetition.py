# SPDX-License-Identifier: Apache-2.0
"""Where a generated text repeats itself."""

from collections.abc import Sequence


def repetition_start(tokens: Sequence[int], repeat: int) -> int:
    """The first place whose `repeat` tokens occur before it, too; the number of tokens if there is none.

    Greedy decoding of a small target soon repeats itself without end, and a drafter has nothing to learn from the
    second round. A `repeat` of 0 finds no repetition.
    """
    if repeat:
        seen = set()
        for place in range(len(tokens) - repeat + 1):
            passage = tuple(tokens[place : place + repeat])
            if passage in seen:
                return place
            seen.add(passage)
    return len(tokens)
