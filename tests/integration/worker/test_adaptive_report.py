# SPDX-License-Identifier: Apache-2.0
"""The line that adaptive trees write once a minute."""

from unittest.mock import patch

import pytest

from redrafter_vllm.adaptive.record import Record
from redrafter_vllm.integration.worker import adaptive_report

STEP = Record(steps=1, nodes=3, expected=1.5, accepted=2.0, seconds=0.5, plain_seconds=0.6, passed_seconds=0.8)


class Clock:
    """`time`, which stands still unless it is told."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(adaptive_report, "time", clock)
    return clock


def test_once_a_minute_the_log_says_what_came_of_the_steps(clock: Clock) -> None:
    records = adaptive_report.StepRecords()
    lines: list[str] = []
    with patch.object(adaptive_report.logger, "info", lambda text, *args: lines.append(text % args)):
        for clock.now in (1.0, 30.0, 59.9):
            records.add(STEP)
        assert not lines
        clock.now = 60.0
        records.add(Record(steps=1, skipped_rounds=1, seconds=0.5, plain_seconds=0.6, passed_seconds=0.6))
        assert len(lines) == 1
        for clock.now in (60.1, 119.9):
            records.add(STEP)
        assert len(lines) == 1
        clock.now = 120.0
        records.add(STEP)
    assert lines[0] == (
        "ReDrafter: 4 steps, 1 of them without drafts, as drafting paused; 2.2 nodes per step, 1.50 accepted, "
        "1.12 expected to be; 1.20 times the estimated speed without drafts, 0.80 times by the clock"
    )
    assert lines[1].startswith("ReDrafter: 3 steps, 0 of them without drafts")
    # The counters have all of it, whether it was logged or not.
    counts = records.take_counts()
    assert (counts.skipped_rounds, counts.expected_thousandths) == (1, 9000)
    assert counts.plain_us == pytest.approx(4_200_000, abs=1)


def test_an_idle_engine_writes_nothing(clock: Clock) -> None:
    """The line comes with a step, as there is nothing to tell of a minute without one."""
    records = adaptive_report.StepRecords()
    with patch.object(adaptive_report.logger, "info") as info:
        clock.now = 1000.0
        assert not info.called
        records.add(STEP)
        assert info.call_count == 1
