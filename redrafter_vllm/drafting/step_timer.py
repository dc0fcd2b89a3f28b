# SPDX-License-Identifier: Apache-2.0
"""Measures the device time of steps and the part of it spent drafting, without waiting for the device."""

import time
from collections import deque
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import torch


class StepTimes(NamedTuple):
    """Sums over steps, in microseconds."""

    drafting: int = 0
    whole: int = 0


NO_TIME = StepTimes()


class StepSize(NamedTuple):
    """What the duration of a step depends on."""

    rows: int
    num_requests: int
    after_round: bool  # whether its drafts, or none of them, come from a round that was drawn
    beam_steps: int | None  # of the round that it ends with; None if it draws none


class TimedStep(NamedTuple):
    """A step that the device has finished; durations in seconds."""

    size: StepSize
    between: float | None  # from the end of the step before; None if no step was timed before it
    target: float
    drafting: float


class Clock(Protocol):
    """Marks points in the device's work."""

    def mark(self) -> Any:
        """The end of the work queued so far."""

    def spans(self, marks: list[Any]) -> list[float] | None:
        """Seconds from each mark to the next one; None until the last is reached."""

    def reuse(self, marks: list[Any]) -> None:
        """Nobody asks for these marks again."""


class HostClock:
    """For synchronous devices."""

    def mark(self) -> float:
        return time.perf_counter()

    def spans(self, marks: list[float]) -> list[float]:
        return [later - earlier for earlier, later in pairwise(marks)]

    def reuse(self, marks: list[float]) -> None:
        """Numbers need no room."""


class CudaClock:
    """CUDA events, reused once they have been read."""

    def __init__(self) -> None:
        self._free: list[torch.cuda.Event] = []

    def mark(self) -> torch.cuda.Event:
        event = self._free.pop() if self._free else torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def spans(self, marks: list[torch.cuda.Event]) -> list[float] | None:
        if not marks[-1].query():
            return None
        return [earlier.elapsed_time(later) / 1e3 for earlier, later in pairwise(marks)]

    def reuse(self, marks: list[torch.cuda.Event]) -> None:
        self._free += marks


class DraftTimer:
    """Times steps from `begin_step` to `end_step`, and the drafting from `begin_drafting` on.

    A step is counted at the end of a later step, when the device has finished it.
    """

    def __init__(self, device: torch.device, clock: Clock | None = None) -> None:
        own: Clock = CudaClock() if device.type == "cuda" else HostClock()
        self.clock = clock or own
        self._begin: Any = None
        self._draft: Any = None
        self._ended: Any = None  # the end of the step before
        self._pending: deque[tuple[StepSize | None, list[Any]]] = deque()
        self._seconds = [0.0, 0.0]
        self._timed: list[TimedStep] = []

    def begin_step(self) -> None:
        self._begin = self.clock.mark()

    def begin_drafting(self) -> None:
        self._draft = self.clock.mark()

    def end_step(self, size: StepSize | None = None) -> None:
        """Ends a step, which is kept for `take_steps` if it has a size; ignored without a `begin_step` before it."""
        if self._begin is None:
            return
        end = self.clock.mark()
        before = [] if self._ended is None else [self._ended]
        self._pending.append((size, [*before, self._begin, self._draft, end]))
        self._begin, self._ended = None, end
        while self._pending and (spans := self.clock.spans(self._pending[0][1])) is not None:
            self._count(*self._pending.popleft(), spans)

    def _count(self, size: StepSize | None, marks: list[Any], spans: list[float]) -> None:
        *before, target, drafting = spans
        self.clock.reuse(marks[:-1])  # the last mark is the first one of the next step
        self._seconds = [self._seconds[0] + drafting, self._seconds[1] + target + drafting]
        if size is not None:
            self._timed.append(TimedStep(size, before[0] if before else None, target, drafting))

    def take(self) -> StepTimes:
        """The times counted since the last call; fractions of a microsecond are kept for the next one."""
        times = StepTimes(*(int(1e6 * total) for total in self._seconds))
        self._seconds = [total - 1e-6 * taken for total, taken in zip(self._seconds, times, strict=True)]
        return times

    def take_steps(self) -> list[TimedStep]:
        """The steps with sizes that the device has finished since the last call."""
        taken, self._timed = self._timed, []
        return taken
