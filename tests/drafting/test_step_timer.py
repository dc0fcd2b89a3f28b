# SPDX-License-Identifier: Apache-2.0
"""The timer, with a device that lags behind the host."""

import torch

from redrafter_vllm.drafting.step_timer import DraftTimer, StepTimes


class LateClock:
    """Marks are the seconds given beforehand; the device has reached `now`."""

    def __init__(self, *marks: float) -> None:
        self.marks = iter(marks)
        self.now = 0.0

    def mark(self) -> float:
        return next(self.marks)

    def seconds(self, begin: float, draft: float, end: float) -> tuple[float, float] | None:
        return None if end > self.now else (end - draft, end - begin)


def step(timer: DraftTimer) -> None:
    timer.begin_step()
    timer.begin_drafting()
    timer.end_step()


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
