# SPDX-License-Identifier: Apache-2.0
"""How many requests run at a time in a turn: always as many, or from one up to some and back."""

import re
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Ramp:
    """Requests come one at a time at first, then by twice as many up to `most` at a time, and by half as many again."""

    most: int

    def __str__(self) -> str:
        return f"1-{self.most}-1"

    @property
    def levels(self) -> list[int]:
        """1, 2, 4 and so on up to `most`, and back to 1."""
        rising = [1 << power for power in range(self.most.bit_length()) if 1 << power < self.most]
        return [*rising, self.most, *reversed(rising)]


Load = int | Ramp


def parse_load(text: str) -> Load:
    """`8`, or `1-32-1` for a ramp.

    Raises:
        ValueError: Neither.
    """
    ramp = re.fullmatch(r"1-([0-9]+)-1", text)
    return Ramp(int(ramp[1])) if ramp else int(text)


def most_at_a_time(loads: Iterable[Load]) -> int:
    return max(load.most if isinstance(load, Ramp) else load for load in loads)


def levels(load: Load) -> list[int]:
    """The numbers of requests at a time that a load has, each once."""
    return sorted(set(load.levels)) if isinstance(load, Ramp) else [load]


def name_of(load: Load) -> int | str:
    """As results call it."""
    return str(load) if isinstance(load, Ramp) else load


def limits(load: Load, requests: int) -> list[int]:
    """How many requests of a turn may run at a time while none, one, two and so on have finished.

    The turn of a ramp has at least `requests`: at every level as many as run there at a time, or a multiple of that, so
    that each level lasts for about as many answers one after the other.
    """
    if not isinstance(load, Ramp):
        return [load] * max(requests, load)
    times = -(-requests // sum(load.levels))
    return [level for level in load.levels for _ in range(times * level)]
