# SPDX-License-Identifier: Apache-2.0
"""Token-by-token comparison of two engines' outputs."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Comparison:
    """Numbers of requests, and of tokens of the expected outputs, that are the same."""

    requests: int
    same_requests: int
    tokens: int
    same_tokens: int
    first_difference: tuple[int, int] | None  # request, position

    @property
    def identical(self) -> bool:
        return self.first_difference is None

    def __str__(self) -> str:
        if self.first_difference is None:
            return f"identical ({self.requests} requests, {self.tokens} tokens)"
        request, position = self.first_difference
        return (
            f"DIFFERENT: {self.same_requests} of {self.requests} requests the same, first difference in request "
            f"{request} at token {position}"
        )


def compare(expected: Sequence[Sequence[object]], actual: Sequence[Sequence[object]]) -> Comparison:
    """Compare outputs by request; a request's tokens count as the same up to its first difference.

    Outputs may also be texts, whose characters then count instead of tokens.

    Raises:
        ValueError: The number of requests differs, or there are none.
    """
    if not expected or len(expected) != len(actual):
        raise ValueError(f"cannot compare {len(actual)} outputs with {len(expected)}")
    common = [common_prefix(a, b) for a, b in zip(expected, actual, strict=True)]
    differing = [
        (request, length)
        for request, (length, a, b) in enumerate(zip(common, expected, actual, strict=True))
        if length < max(len(a), len(b))
    ]
    return Comparison(
        requests=len(expected),
        same_requests=len(expected) - len(differing),
        tokens=sum(map(len, expected)),
        same_tokens=sum(common),
        first_difference=differing[0] if differing else None,
    )


def common_prefix(a: Sequence[object], b: Sequence[object]) -> int:
    """Length of the longest common prefix."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
