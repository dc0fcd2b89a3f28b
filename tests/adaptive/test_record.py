# SPDX-License-Identifier: Apache-2.0
"""Sums over steps, worked by hand."""

from redrafter_vllm.adaptive.record import NO_COUNTS, AdaptiveCounts, Record


def drafted() -> Record:
    """Three tokens of one request, in 54 ms, where 50 were expected, instead of 3 · 20."""
    return Record(1, nodes=4, expected=1.5, accepted=2.0, seconds=0.05, plain_seconds=0.06, passed_seconds=0.054)


def test_the_quotient_of_the_counters_is_that_of_the_log() -> None:
    record = Record()
    record.add(drafted())
    record.add(Record(1, skipped_rounds=1, accepted=0.0, seconds=0.02, plain_seconds=0.02, passed_seconds=0.026))
    assert "2 steps, 1 of them without drafts" in str(record)
    assert "1.14 times the estimated speed without drafts, 1.00 times by the clock" in str(record)  # 80 / 70, 80 / 80
    assert record.take_counts() == AdaptiveCounts(
        skipped_rounds=1, expected_thousandths=1500, plain_us=80_000, taken_us=70_000, passed_us=80_000
    )
    assert record.take_counts() == NO_COUNTS


def test_fractions_are_kept() -> None:
    record, taken = Record(), []
    for _ in range(4):
        record.add(Record(1, expected=0.0003, seconds=0.8e-6, plain_seconds=0.6e-6, passed_seconds=1.1e-6))
        taken.append(record.take_counts())
    assert taken[0] == AdaptiveCounts(passed_us=1)
    # 1.2 thousandths, 2.4, 3.2 and 4.4 microseconds.
    assert [sum(values) for values in zip(*taken, strict=True)] == [0, 1, 2, 3, 4]
