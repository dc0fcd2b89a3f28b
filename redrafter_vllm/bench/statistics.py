# SPDX-License-Identifier: Apache-2.0
"""Percentiles of requests, and an interval for the median of rounds that needs no assumption on their distribution."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from statistics import median

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A median over rounds, and the interval that holds the true median with probability `coverage`.

    With a single round there is no interval.
    """

    median: float
    low: float | None
    high: float | None
    coverage: float | None


def percentile(values: Sequence[float], percent: float) -> float:
    """Interpolated linearly between the two nearest values, as NumPy does.

    Raises:
        ValueError: There are no values.
    """
    if not values:
        raise ValueError("no values have no percentile")
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def estimate(values: Sequence[float]) -> Estimate:
    """The median of `values`, and the narrowest interval between two of them that covers at least `CONFIDENCE`.

    The interval from the k-th smallest to the k-th largest of n values misses the true median where fewer than k
    values, binomially distributed with probability 1/2, lie on one side of it. With fewer than six values even the
    widest interval, from the smallest to the largest, covers less; its own coverage is given then.

    Raises:
        ValueError: There are no values.
    """
    if not values:
        raise ValueError("no values have no median")
    ordered, number = sorted(values), len(values)
    if number == 1:
        return Estimate(ordered[0], None, None, None)
    rank = max((k for k in range(1, number // 2 + 1) if coverage(number, k) >= CONFIDENCE), default=1)
    return Estimate(median(ordered), ordered[rank - 1], ordered[number - rank], coverage(number, rank))


def coverage(number: int, rank: int) -> float:
    """Probability that the median lies between the `rank`-th smallest and the `rank`-th largest of `number` values."""
    return 1 - 2 * sum(comb(number, k) for k in range(rank)) / 2**number
