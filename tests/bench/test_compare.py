# SPDX-License-Identifier: Apache-2.0
"""Comparison of outputs."""

import pytest

from redrafter_vllm.bench.compare import compare


def test_identical_outputs() -> None:
    comparison = compare([[1, 2, 3], [4]], [[1, 2, 3], [4]])
    assert comparison.identical
    assert (comparison.requests, comparison.same_requests, comparison.tokens, comparison.same_tokens) == (2, 2, 4, 4)
    assert str(comparison) == "identical (2 requests, 4 tokens)"


@pytest.mark.parametrize(
    ("actual", "first", "same_tokens"),
    [
        ([[1, 2, 3], [4, 5]], None, 5),
        ([[1, 9, 3], [4, 5]], (0, 1), 3),
        ([[1, 2, 3], [4]], (1, 1), 4),  # too short
        ([[1, 2, 3], [4, 5, 6]], (1, 2), 5),  # too long
        ([[], [9, 5]], (0, 0), 0),
    ],
)
def test_the_first_difference(actual: list[list[int]], first: tuple[int, int] | None, same_tokens: int) -> None:
    comparison = compare([[1, 2, 3], [4, 5]], actual)
    assert comparison.first_difference == first
    assert comparison.identical == (first is None)
    assert comparison.same_tokens == same_tokens


@pytest.mark.parametrize(("expected", "actual"), [([], []), ([[1]], []), ([[1]], [[1], [2]])])
def test_different_numbers_of_outputs_are_refused(expected: list[list[int]], actual: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="cannot compare"):
        compare(expected, actual)
