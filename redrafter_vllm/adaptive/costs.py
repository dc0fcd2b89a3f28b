# SPDX-License-Identifier: Apache-2.0
"""How long a step takes, by its rows and requests: measured at the start, corrected by every step that follows."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEARNING_RATE = 0.05  # of a correction by one step
MAX_SURPRISE = 2.0  # a step that took longer than this times what was expected, or shorter than its inverse, is cut


@dataclass(frozen=True)
class MeasuredCosts:
    """Durations in seconds, as measured when the engine started."""

    verification: Sequence[tuple[int, float]]  # (rows, the target's step over them), rows ascending
    per_request: float  # further time of the target's step for each request
    drafting: Sequence[tuple[int, float]]  # (requests, a round for them), requests ascending
    first_beam_step: Sequence[tuple[int, float]] = ()  # the same for rounds of one beam step; none if all are whole
    copies_alone: Sequence[tuple[int, float]] = ()  # and for those without any, which copy the text; none if none do
    beam_length: int = 1  # beam steps of a whole round

    def __str__(self) -> str:
        rows = ", ".join(f"{rows}: {1e3 * seconds:.1f}" for rows, seconds in self.verification)
        rounds = ", ".join(f"{requests}: {1e3 * seconds:.1f}" for requests, seconds in self.drafting)
        shorter = "".join(
            f" ({name}: {', '.join(f'{1e3 * seconds:.1f}' for _, seconds in measured)})"
            for name, measured in (("of one beam step", self.first_beam_step), ("copies alone", self.copies_alone))
            if measured
        )
        return f"target, ms by rows: {rows}; drafting, ms by requests: {rounds}{shorter}"


class StepCosts:
    """Durations of steps of up to `max_rows` rows and `max_requests` requests.

    What was measured at the start lacks the length of the context and whatever else the machine does. So for some sizes
    there is a factor, which follows the real steps of about that size; between them and beyond it is interpolated.
    Steps without drafts have factors of their own, as all that drafting brings is compared with them.
    """

    def __init__(self, measured: MeasuredCosts, max_rows: int, max_requests: int) -> None:
        self._rows = _by_size(measured.verification, max_rows)
        self._rounds = _by_size(measured.drafting, max_requests)
        self.beam_length = measured.beam_length
        self.fewest_beam_steps = 0 if measured.copies_alone else 1
        self._shares = _shares(measured, self._rounds)
        self._per_request = measured.per_request
        self._row_factors = _Factors(max_rows)
        self._plain_factors = _Factors(max_requests)
        self._round_factors = _Factors(max_requests)
        # By whether trees were drawn, and by requests within factors of 2.
        self._between = np.full((2, max_requests.bit_length() + 1), np.nan)

    def verification(self, first: int, last: int, num_requests: int) -> np.ndarray:
        """Seconds of the target's step, with `first` to `last` rows. [last - first + 1]"""
        rows = np.clip(np.arange(first, last + 1), 1, len(self._rows) - 1)
        factors = self._row_factors.of(rows)
        if self._plain_factors.is_known:
            plain = self._plain_factors.of(np.array([self._bounded(num_requests)]))
            if not self._row_factors.is_known:
                factors = np.broadcast_to(plain, rows.shape)
            elif first <= num_requests <= last:
                factors[num_requests - first] = plain[0]
        return _rising((self._rows[rows] + self._per_request * num_requests) * factors)

    def drafting(self, num_requests: int, beam_steps: int | None = None) -> float:
        """Seconds of a drafting round, whole unless its beam steps are given."""
        size = self._bounded(num_requests)
        return float(self._expected_round(size, beam_steps) * self._round_factors.of(np.array([size]))[0])

    def between(self, num_requests: int, *, is_drawn: bool) -> float:
        """Seconds from the end of a step to the target's next one; 0 as long as none has been seen.

        More tokens per step save some of them, but after a round the engine has trees to schedule as well.
        """
        for known in (self._between[int(is_drawn)], self._between[int(not is_drawn)]):
            if len(seen := np.flatnonzero(~np.isnan(known))):
                return float(np.interp(num_requests.bit_length(), seen, known[seen]))
        return 0.0

    def unseen(self, first: int, last: int) -> int | None:
        """The smallest number of rows from `first` to `last` that no step with drafts, of about that size, has had."""
        return self._row_factors.unseen(first, min(last, len(self._rows) - 1))

    def has_seen_plain(self, num_requests: int) -> bool:
        """Whether there has been a step without drafts for about so many requests."""
        return self._plain_factors.has_seen(self._bounded(num_requests))

    def observe_verification(self, rows: int, num_requests: int, seconds: float) -> None:
        """A step of the target has taken this long; with one row for each request it had no drafts."""
        size = min(max(rows, 1), len(self._rows) - 1)
        factor = seconds / (self._rows[size] + self._per_request * num_requests)
        if rows == num_requests:
            self._plain_factors.observe(self._bounded(num_requests), factor)
        else:
            self._row_factors.observe(size, factor)

    def observe_drafting(self, num_requests: int, seconds: float, beam_steps: int | None = None) -> None:
        """A drafting round has taken this long, whole unless its beam steps are given."""
        size = self._bounded(num_requests)
        self._round_factors.observe(size, seconds / self._expected_round(size, beam_steps))

    def observe_between(self, num_requests: int, seconds: float, *, is_drawn: bool) -> None:
        """So long after the end of a step, and of a round, the target's next one has begun, for the same requests."""
        place = int(is_drawn), min(num_requests.bit_length(), self._between.shape[1] - 1)
        known = self._between[place]
        # Whatever comes between makes it longer, never shorter.
        self._between[place] = (
            seconds if np.isnan(known) else known + LEARNING_RATE * (min(seconds, MAX_SURPRISE * known) - known)
        )

    def _bounded(self, num_requests: int) -> int:
        return min(max(num_requests, 1), len(self._rounds) - 1)

    def _expected_round(self, size: int, beam_steps: int | None) -> float:
        return float(self._rounds[size] * (1 if beam_steps is None else self._shares[beam_steps, size]))


class _Factors:
    """Measured over expected, by size; sizes share a factor with those within about a quarter of them."""

    def __init__(self, max_size: int) -> None:
        self._sizes = _steps_up_to(max_size)
        self._factors = np.full(len(self._sizes), np.nan)
        self._table = np.ones(max_size + 1)

    @property
    def is_known(self) -> bool:
        """Whether any size has been observed."""
        return bool((~np.isnan(self._factors)).any())

    def of(self, sizes: np.ndarray) -> np.ndarray:
        return self._table[sizes]

    def has_seen(self, size: int) -> bool:
        """Whether there is a factor that `size` shares."""
        return not np.isnan(self._factors[self._place(size)])

    def unseen(self, first: int, last: int) -> int | None:
        """The smallest size from `first` to `last` that has no factor of its own."""
        own = (first <= self._sizes) & (self._sizes <= last) & np.isnan(self._factors)
        return int(self._sizes[own][0]) if own.any() else None

    def observe(self, size: int, factor: float) -> None:
        place = self._place(size)
        is_first = np.isnan(self._factors[place])
        known = self._table[size] if is_first else self._factors[place]
        factor = min(max(factor, known / MAX_SURPRISE), known * MAX_SURPRISE)
        # The first step of a size counts in full: it is all that is known of it.
        self._factors[place] = factor if is_first else known + LEARNING_RATE * (factor - known)
        seen = ~np.isnan(self._factors)
        self._table = np.interp(np.arange(len(self._table)), self._sizes[seen], self._factors[seen])

    def _place(self, size: int) -> int:
        return int(np.abs(self._sizes - size).argmin())


def _shares(measured: MeasuredCosts, whole: np.ndarray) -> np.ndarray:
    """Of a whole round's time, what one of 0 to T beam steps takes, by requests; each beyond the first takes as long.

    [T + 1, sizes]; `whole` [sizes] are the seconds of whole rounds.
    """
    sizes = len(whole) - 1
    first = np.clip(_by_size(measured.first_beam_step or measured.drafting, sizes) / whole, 0, 1)
    none = np.clip(_by_size(measured.copies_alone or measured.drafting, sizes) / whole, 0, first)
    further = np.arange(measured.beam_length)[:, None] / max(measured.beam_length - 1, 1)
    return np.concatenate([none[None], first + further * (1 - first)])


def _steps_up_to(limit: int) -> np.ndarray:
    """Sizes 1 to `limit`, each at least 1 and about a fifth above the one before."""
    sizes = [1]
    while sizes[-1] < limit:
        sizes.append(min(max(sizes[-1] + 1, round(sizes[-1] * 1.2)), limit))
    return np.array(sizes)


def _rising(seconds: np.ndarray) -> np.ndarray:
    """Lowered where a larger size takes less: whatever disturbs a measurement makes it longer, never shorter."""
    return np.minimum.accumulate(seconds[::-1])[::-1]


def _by_size(points: Sequence[tuple[int, float]], limit: int) -> np.ndarray:
    """Seconds for sizes 0 to `limit`: never falling, straight between the points, and beyond the last two as well."""
    sizes, seconds = (np.asarray(values, dtype=np.float64) for values in zip(*points, strict=True))
    seconds = _rising(seconds)
    wanted = np.arange(limit + 1)
    table = np.interp(wanted, sizes, seconds)
    if len(sizes) > 1:
        slope = (seconds[-1] - seconds[-2]) / (sizes[-1] - sizes[-2])
        beyond = wanted > sizes[-1]
        table[beyond] = seconds[-1] + slope * (wanted[beyond] - sizes[-1])
    return np.maximum(table, 1e-7)
