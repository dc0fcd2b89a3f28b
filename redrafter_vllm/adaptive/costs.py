# SPDX-License-Identifier: Apache-2.0
"""How long a step takes, by its rows and requests: measured at the start, corrected by every step that follows."""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

LEARNING_RATE = 0.05  # of a time by one round, once there have been many
SIZE_RATE = 0.02  # of a size's factor by one step, which is relative to the pace
PACE_RATE = 0.1  # of the machine's pace by one step of a size that is known
FORGOTTEN = 0.01  # of what is known of all sizes, by every step of the same kind: the context grows
# Of what is known of steps after rounds by one without, and the other way round. What makes one kind dearer is at first
# taken for the pace, and so for both: fresh steps of the other kind, which are few, have to outweigh its old ones.
FORGOTTEN_OF_OTHERS = 0.003
FORGOTTEN_WEIGHT = 0.1  # of steps; a size of which less is left counts as unseen
NEIGHBOURS = 0.15  # logarithm of the ratio of two sizes at which one counts 1/e for the other
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

    def at_powers_of_two(self) -> "MeasuredCosts":
        """The same with fewer sizes, to be shown."""
        tables = self.verification, self.drafting, self.first_beam_step, self.copies_alone
        kept = ([point for point in table if point[0].bit_count() == 1] for table in tables)
        verification, drafting, first_beam_step, copies_alone = kept
        return replace(
            self,
            verification=verification,
            drafting=drafting,
            first_beam_step=first_beam_step,
            copies_alone=copies_alone,
        )

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
    Steps that no round went before have factors of their own: all that drafting brings is compared with them, and they
    do not find the drafter's weights in the place of the target's in the caches. What a round takes beyond its
    measurement is a time instead: most of it is the engine's own work around a round, which is the same for short and
    for long ones.

    Other work comes and goes within seconds, and with it the time of all steps alike, while some sizes are seen once in
    a minute: if each followed only its own steps, a size seen when the machine was slow would seem dear until then. So
    the factors are relative to a pace of the machine, which follows every step, whatever its size.
    """

    def __init__(self, measured: MeasuredCosts, max_rows: int, max_requests: int) -> None:
        self._rows = _by_size(measured.verification, max_rows)
        self._rounds = _rounds(measured, max_requests)
        self.beam_length = measured.beam_length
        self.fewest_beam_steps = 0 if measured.copies_alone else 1
        self._per_request = measured.per_request
        # Factors are averaged as logarithms: what the pace takes of a step, its size does not, and neither drifts.
        self._pace = 0.0  # the target's steps of late over what was known of steps of their sizes
        self._row_factors = _Corrections(max_rows, SIZE_RATE)
        self._plain_factors = _Corrections(max_requests, SIZE_RATE)
        self._round_extras = _Corrections(max_requests, LEARNING_RATE)  # seconds
        # By whether trees were drawn, and by requests within factors of 2.
        self._between: tuple[dict[int, float], dict[int, float]] = ({}, {})

    def verification(self, first: int, last: int, num_requests: int) -> np.ndarray:
        """Seconds of the target's step after a round, with `first` to `last` rows. [last - first + 1]"""
        rows = np.minimum(np.arange(first, last + 1), len(self._rows) - 1)
        factors = self._row_factors.of_all(rows) if self._row_factors.is_known else self._without_rounds(num_requests)
        return _rising((self._rows[rows] + self._per_request * num_requests) * np.exp(self._pace + factors))

    def after_round(self, rows: int, num_requests: int) -> float:
        """Seconds of the target's step after a round, with so many rows."""
        known, size = self._row_factors, self._bounded_rows(rows)
        factor = known.of(size) if known.is_known else self._without_rounds(num_requests)
        return self._measured_step(rows, num_requests) * math.exp(self._pace + factor)

    def _without_rounds(self, num_requests: int) -> float:
        """The factor of steps without rounds, which holds for those after one as long as none has been seen."""
        return self._plain_factors.of(self._bounded(num_requests))

    def plain(self, num_requests: int) -> float:
        """Seconds of the target's step that no round went before, and which has no drafts.

        At most those of a step of as many rows after a round: it does the same work, and finds the caches as it left
        them. So when the machine was slow in the few such steps that are seen, drafting does not seem to gain by it.
        """
        own = self._plain_factors, self._bounded(num_requests)
        after_round = self._row_factors, self._bounded_rows(num_requests)
        factor = min((known.of(size) for known, size in (own, after_round) if known.is_known), default=0.0)
        return self._measured_step(num_requests, num_requests) * math.exp(self._pace + factor)

    def drafting(self, num_requests: int, beam_steps: int | None = None) -> float:
        """Seconds of a drafting round, whole unless its beam steps are given."""
        size = self._bounded(num_requests)
        measured = self._measured_round(size, beam_steps)
        return max(measured + self._round_extras.of(size), measured / MAX_SURPRISE)

    def between(self, num_requests: int, *, is_drawn: bool) -> float:
        """Seconds from the end of a step to the target's next one; 0 as long as none has been seen.

        More tokens per step save some of them, but after a round the engine has trees to schedule as well.
        """
        load, known = num_requests.bit_length(), self._between[int(is_drawn)] or self._between[int(not is_drawn)]
        if load in known or not known:
            return known.get(load, 0.0)
        seen = sorted(known)
        return float(np.interp(load, seen, [known[each] for each in seen]))

    def unseen(self, first: int, last: int) -> int | None:
        """The smallest number of rows from `first` to `last` that no step with drafts, of about that size, has had."""
        return self._row_factors.unseen(first, min(last, len(self._rows) - 1))

    def observe_verification(self, rows: int, num_requests: int, seconds: float) -> None:
        """A step of the target after a round has taken this long."""
        self._observe_step(self._row_factors, self._bounded_rows(rows), rows, num_requests, seconds)
        self._plain_factors.forget(FORGOTTEN_OF_OTHERS)

    def observe_plain(self, num_requests: int, seconds: float) -> None:
        """A step of the target without drafts, which no round went before, has taken this long."""
        self._observe_step(self._plain_factors, self._bounded(num_requests), num_requests, num_requests, seconds)
        self._row_factors.forget(FORGOTTEN_OF_OTHERS)

    def _observe_step(self, factors: "_Corrections", size: int, rows: int, num_requests: int, seconds: float) -> None:
        expected = self._measured_step(rows, num_requests) * math.exp(self._pace + factors.of(size))
        surprise = math.log(_within(seconds, expected) / expected)
        # The first step of a size tells how long it takes at this pace, later ones tell more and more of the pace.
        num_steps = factors.num_steps(size)
        factors.observe(size, factors.of(size) + surprise)
        self._pace += PACE_RATE * num_steps / (num_steps + 1) * surprise

    def observe_drafting(self, num_requests: int, seconds: float, beam_steps: int | None = None) -> None:
        """A drafting round has taken this long, whole unless its beam steps are given."""
        size = self._bounded(num_requests)
        seconds = _within(seconds, self.drafting(size, beam_steps))
        self._round_extras.observe(size, seconds - self._measured_round(size, beam_steps))

    def observe_between(self, num_requests: int, seconds: float, *, is_drawn: bool) -> None:
        """So long after the end of a step, and of a round, the target's next one has begun, for the same requests."""
        known, load = self._between[int(is_drawn)], num_requests.bit_length()
        # Whatever comes between makes it longer, never shorter: the first one may have compiled something.
        if load not in known:
            known[load] = min(seconds, MAX_SURPRISE * self.plain(num_requests))
        else:
            known[load] += LEARNING_RATE * (min(seconds, MAX_SURPRISE * known[load]) - known[load])

    def _measured_step(self, rows: int, num_requests: int) -> float:
        return float(self._rows[self._bounded_rows(rows)] + self._per_request * num_requests)

    def _bounded_rows(self, rows: int) -> int:
        return min(max(rows, 1), len(self._rows) - 1)

    def _bounded(self, num_requests: int) -> int:
        return min(max(num_requests, 1), self._rounds.shape[1] - 1)

    def _measured_round(self, size: int, beam_steps: int | None) -> float:
        return float(self._rounds[self.beam_length if beam_steps is None else beam_steps, size])


class _Corrections:
    """What the measurements at the start are corrected by, by size: an average of the steps of about that size.

    A size of which little is known, or nothing new, has the correction of its neighbours. If each had its own, a larger
    one would by chance seem as cheap as the one below it, and would be chosen for ever, as nothing more is learned of a
    size that is not chosen.
    """

    def __init__(self, max_size: int, rate: float) -> None:
        self._rate = rate
        self._sizes = _steps_up_to(max_size)
        logarithms = np.log(self._sizes)
        self._likeness = np.exp(-np.abs(logarithms[:, None] - logarithms) / NEIGHBOURS)
        self._weights = np.zeros(len(self._sizes))  # of steps; the last ones weigh most
        self._sums = np.zeros(len(self._sizes))
        self._averages = [0.0] * len(self._sizes)  # a list, as single ones are read several times in each step
        self.is_known = False  # whether any size has been observed

    def of(self, size: int) -> float:
        """The correction of a size from 1 to the largest."""
        above = bisect_left(self._sizes, size)
        if self._sizes[above] == size:
            return self._averages[above]
        share = (size - self._sizes[above - 1]) / (self._sizes[above] - self._sizes[above - 1])
        return (1 - share) * self._averages[above - 1] + share * self._averages[above]

    def of_all(self, sizes: np.ndarray) -> np.ndarray:
        """The corrections of these sizes."""
        return np.interp(sizes, self._sizes, self._averages)

    def unseen(self, first: int, last: int) -> int | None:
        """The smallest size from `first` to `last` of which no step has been observed, or only long ago."""
        places = range(bisect_left(self._sizes, first), bisect_left(self._sizes, last + 1))
        return next((self._sizes[place] for place in places if self._weights[place] < FORGOTTEN_WEIGHT), None)

    def num_steps(self, size: int) -> float:
        """Steps of about that size which its correction is an average of; 0 if there have been none."""
        return float(self._likeness[self._place(size)] @ self._weights)

    def observe(self, size: int, value: float) -> None:
        place = self._place(size)
        self.forget(FORGOTTEN)
        for known, new in ((self._weights, 1.0), (self._sums, value)):
            known[place] = (1 - self._rate) * known[place] + new
        self._averages = ((self._likeness @ self._sums) / (self._likeness @ self._weights)).tolist()
        self.is_known = True

    def forget(self, share: float) -> None:
        """Later steps count for more; what is believed now stays."""
        self._weights *= 1 - share
        self._sums *= 1 - share

    def _place(self, size: int) -> int:
        """Of the size that is nearest; of two the smaller."""
        above = bisect_left(self._sizes, size)
        return above - (above > 0 and size - self._sizes[above - 1] <= self._sizes[above] - size)


def _within(seconds: float, expected: float) -> float:
    """A duration, cut where it surprises."""
    return min(max(seconds, expected / MAX_SURPRISE), expected * MAX_SURPRISE)


def _rounds(measured: MeasuredCosts, max_requests: int) -> np.ndarray:
    """Seconds of rounds of 0 to T beam steps, by requests; each step beyond the first takes as long.

    [T + 1, 1 + max_requests]
    """
    whole = _by_size(measured.drafting, max_requests)
    first = np.minimum(_by_size(measured.first_beam_step or measured.drafting, max_requests), whole)
    none = np.minimum(_by_size(measured.copies_alone or measured.drafting, max_requests), first)
    further = np.arange(measured.beam_length)[:, None] / max(measured.beam_length - 1, 1)
    return np.concatenate([none[None], first + further * (whole - first)])


def _steps_up_to(limit: int) -> list[int]:
    """Sizes 1 to `limit`, each at least 1 and about a fifth above the one before."""
    sizes = [1]
    while sizes[-1] < limit:
        sizes.append(min(max(sizes[-1] + 1, round(sizes[-1] * 1.2)), limit))
    return sizes


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
