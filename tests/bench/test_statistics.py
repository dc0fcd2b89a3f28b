# SPDX-License-Identifier: Apache-2.0
"""Percentiles, medians and their intervals, worked by hand."""

import pytest

from redrafter_vllm.bench.statistics import Estimate, coverage, estimate, percentile


@pytest.mark.parametrize(
    ("percent", "expected"), [(0, 10.0), (50, 25.0), (25, 17.5), (90, 37.0), (99, 39.7), (100, 40.0)]
)
def test_percentiles_lie_between_the_nearest_values(percent: float, expected: float) -> None:
    # Places 0 to 3 hold 10 to 40: percent 90 is place 2.7, percent 99 place 2.97.
    assert percentile([40.0, 10.0, 30.0, 20.0], percent) == pytest.approx(expected)


def test_one_value_is_every_percentile() -> None:
    assert percentile([3.0], 99) == 3.0


@pytest.mark.parametrize(
    ("number", "rank", "expected"),
    [
        (2, 1, 1 - 2 / 4),
        (3, 1, 1 - 2 / 8),
        (5, 1, 1 - 2 / 32),
        (6, 1, 1 - 2 / 64),
        (9, 2, 1 - 2 * (1 + 9) / 512),
        (12, 3, 1 - 2 * (1 + 12 + 66) / 4096),
    ],
)
def test_coverage_counts_the_cases_that_miss_the_median(number: int, rank: int, expected: float) -> None:
    assert coverage(number, rank) == pytest.approx(expected)


def test_few_rounds_have_the_widest_interval_and_say_what_it_covers() -> None:
    assert estimate([1.4, 1.0, 1.2]) == Estimate(1.2, 1.0, 1.4, 0.75)
    assert estimate([2.0, 1.0, 4.0, 3.0]) == Estimate(2.5, 1.0, 4.0, 0.875)


def test_more_rounds_leave_the_extremes_out_where_the_rest_covers_enough() -> None:
    # Eight values without the extremes would cover 93 %, nine 96 %.
    assert estimate([8.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]).low == 1.0
    nine = estimate([9.0, 1.0, 8.0, 2.0, 7.0, 3.0, 6.0, 4.0, 5.0])
    assert (nine.median, nine.low, nine.high) == (5.0, 2.0, 8.0)
    assert nine.coverage == pytest.approx(0.9609, abs=1e-4)


def test_one_round_has_no_interval() -> None:
    assert estimate([1.5]) == Estimate(1.5, None, None, None)


def test_no_values_are_an_error() -> None:
    with pytest.raises(ValueError, match="no median"):
        estimate([])
    with pytest.raises(ValueError, match="no percentile"):
        percentile([], 50)
