# SPDX-License-Identifier: Apache-2.0
"""Measures the device time of steps and the part of it spent drafting, without waiting for the device."""

import time
from collections import deque
from typing import Any, NamedTuple, Protocol

import torch


class StepTimes(NamedTuple):
    """Sums over steps, in microseconds."""

    drafting: int = 0
    whole: int = 0


NO_TIME = StepTimes()


class Clock(Protocol):
    """Marks points in the device's work; a mark is reused once its span has been read."""

    def mark(self) -> Any:
        """The end of the work queued so far."""

    def seconds(self, begin: Any, draft: Any, end: Any) -> tuple[float, float] | None:
        """Seconds from the second mark to the third and from the first to it; None until the third is reached."""


class HostClock:
    """For synchronous devices."""

    def mark(self) -> float:
        return time.perf_counter()

    def seconds(self, begin: float, draft: float, end: float) -> tuple[float, float]:
        return end - draft, end - begin


class CudaClock:
    """CUDA events, reused once they have been read."""

    def __init__(self) -> None:
        self._free: list[torch.cuda.Event] = []

    def mark(self) -> torch.cuda.Event:
        event = self._free.pop() if self._free else torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(
        self, begin: torch.cuda.Event, draft: torch.cuda.Event, end: torch.cuda.Event
    ) -> tuple[float, float] | None:
        if not end.query():
            return None
        self._free += (begin, draft, end)
        return draft.elapsed_time(end) / 1e3, begin.elapsed_time(end) / 1e3


class DraftTimer:
    """Times steps from `begin_step` to `end_step`, and the drafting from `begin_drafting` on.

    A step is counted at the end of a later step, when the device has finished it.
    """

    def __init__(self, device: torch.device, clock: Clock | None = None) -> None:
        own: Clock = CudaClock() if device.type == "cuda" else HostClock()
        self._clock = clock or own
        self._begin: Any = None
        self._draft: Any = None
        self._pending: deque[tuple[Any, Any, Any]] = deque()
        self._seconds = [0.0, 0.0]

    def begin_step(self) -> None:
        self._begin = self._clock.mark()

    def begin_drafting(self) -> None:
        self._draft = self._clock.mark()

    def end_step(self) -> None:
        """Ends a step; ignored without a `begin_step` before it."""
        if self._begin is None:
            return
        self._pending.append((self._begin, self._draft, self._clock.mark()))
        self._begin = None
        while self._pending and (spans := self._clock.seconds(*self._pending[0])) is not None:
            self._pending.popleft()
            self._seconds = [total + span for total, span in zip(self._seconds, spans, strict=True)]

    def take(self) -> StepTimes:
        """The times counted since the last call; fractions of a microsecond are kept for the next one."""
        times = StepTimes(*(int(1e6 * total) for total in self._seconds))
        self._seconds = [total - 1e-6 * taken for total, taken in zip(self._seconds, times, strict=True)]
        return times
