# SPDX-License-Identifier: Apache-2.0
"""The timer, with a device that lags behind the host."""

from itertools import pairwise

import torch

from redrafter_vllm.drafting.step_timer import DraftTimer, StepSize, StepTimes, TimedStep


class LateClock:
    """Marks are the seconds given beforehand; the device has reached `now`."""

    def __init__(self, *marks: float) -> None:
        self.marks = iter(marks)
        self.now = 0.0
        self.reused: list[float] = []

    def mark(self) -> float:
        return next(self.marks)

    def spans(self, marks: list[float]) -> list[float] | None:
        return None if marks[-1] > self.now else [later - earlier for earlier, later in pairwise(marks)]

    def reuse(self, marks: list[float]) -> None:
        self.reused += marks


def step(timer: DraftTimer, size: StepSize | None = None) -> None:
    timer.begin_step()
    timer.begin_drafting()
    timer.end_step(size)


def test_steps_count_once_the_device_has_finished_them() -> None:
    clock = LateClock(1.0, 3.0, 4.0, 5.0, 6.0, 8.0, 9.0, 9.5, 10.0)
    timer = DraftTimer(torch.device("cpu"), clock)
    step(timer)
    assert timer.take() == StepTimes(0, 0)
    clock.now = 4.5
    step(timer)
    assert timer.take() == StepTimes(1_000_000, 3_000_000)
    assert timer.take() == StepTimes(0, 0)
    clock.now = 10.0
    step(timer)
    assert timer.take() == StepTimes(2_500_000, 4_000_000)


def test_fractions_of_a_microsecond_add_up() -> None:
    # Powers of two, exact in binary: each step lasts 1.5 * 2**-20 s, all of it drafting.
    length = 1.5 * 2.0**-20
    clock = LateClock(*(mark for i in range(1000) for mark in (i * length, i * length, (i + 1) * length)))
    clock.now = 1.0
    timer = DraftTimer(torch.device("cpu"), clock)
    total = 0
    for _ in range(1000):
        step(timer)
        total += timer.take().drafting
    assert total == int(1000 * length * 1e6)


def test_steps_with_a_size_are_told_apart() -> None:
    """Begin, drafting and end of three steps; the second has no size. A mark is free once no step needs it."""
    clock = LateClock(1.0, 3.0, 4.0, 5.0, 6.0, 8.0, 8.5, 10.0, 10.25)
    timer = DraftTimer(torch.device("cpu"), clock)
    sizes = [StepSize(5, 2, after_round=True, beam_steps=4), None, StepSize(2, 2, after_round=False, beam_steps=None)]
    clock.now = 8.0
    for size in sizes:
        step(timer, size)
    assert timer.take_steps() == [TimedStep(sizes[0], None, 2.0, 1.0)]
    assert clock.reused == [1.0, 3.0, 4.0, 5.0, 6.0]
    clock.now, clock.marks = 20.0, iter((11.0, 11.5, 12.0))
    step(timer)
    assert timer.take_steps() == [TimedStep(sizes[2], 0.5, 1.5, 0.25)]
    assert timer.take_steps() == [] and timer.take() == StepTimes(3_750_000, 8_750_000)
    assert len(clock.reused) == len(set(clock.reused))


def test_a_step_that_did_not_begin_is_not_counted() -> None:
    clock = LateClock(1.0, 2.0)
    clock.now = 9.0
    timer = DraftTimer(torch.device("cpu"), clock)
    timer.begin_drafting()
    timer.end_step()
    assert timer.take() == StepTimes(0, 0)


def test_the_host_clock_measures() -> None:
    timer = DraftTimer(torch.device("cpu"))
    timer.begin_step()
    sum(range(20_000))
    timer.begin_drafting()
    sum(range(20_000))
    timer.end_step()
    times = timer.take()
    assert 0 < times.drafting < times.whole
