# SPDX-License-Identifier: Apache-2.0
"""Tokens per step and acceptance, on cases computed by hand."""

import json
from dataclasses import asdict

import pytest

from redrafter_vllm.bench.acceptance import (
    DraftCounters,
    acceptance_by_depth,
    acceptance_of_steps,
    emitted_by_step,
    tokens_per_step,
)


def test_the_first_step_of_a_request_does_not_count() -> None:
    # First request: a prompt's token, then verifications that emit 3, 1 and 4. Second: two plain steps.
    assert tokens_per_step([[1, 3, 1, 4], [1, 1, 1]]) == pytest.approx((8 + 2) / (3 + 2))


def test_tokens_per_step_without_drafts_is_one() -> None:
    assert tokens_per_step([[1] * 9, [1] * 5]) == 1.0


@pytest.mark.parametrize("steps", [[], [[1]], [[1], [1]]])
def test_no_decoded_token_is_an_error(steps: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="beyond its first token"):
        tokens_per_step(steps)


def test_acceptance_by_depth_is_a_fraction_of_verifications() -> None:
    before = DraftCounters(10, (5, 2, 0, 0))
    after = DraftCounters(30, (20, 10, 4, 0))
    assert acceptance_by_depth(after - before, 3) == [15 / 20, 8 / 20, 4 / 20]


def test_an_engine_that_drafts_nothing_accepts_nothing() -> None:
    assert acceptance_by_depth(DraftCounters(0, ()), 4) == [0.0, 0.0, 0.0, 0.0]


def test_counters_survive_json() -> None:
    counters = DraftCounters(7, (3, 1))
    assert DraftCounters.from_dict(json.loads(json.dumps(asdict(counters)))) == counters


def test_acceptance_of_steps_counts_all_verifications() -> None:
    # Of five verifications, which emit 3, 1, 4, 1 and 2 tokens, three accept a draft, two a second, one a third.
    assert acceptance_of_steps([[1, 3, 1, 4], [1], [1, 1, 2]], 4) == [3 / 5, 2 / 5, 1 / 5, 0.0]
    assert acceptance_of_steps([[1], [1]], 2) == [0.0, 0.0]


def test_steps_of_a_simulation_are_those_of_an_engine() -> None:
    # Ten tokens: the prompt's, then 3, 1 and 4; the last step accepts 4 drafts, and the request ends with the first.
    assert emitted_by_step([2, 0, 3, 4], 10) == [1, 3, 1, 4, 1]
    # The last accepted draft is the end: no token of the target follows it.
    assert emitted_by_step([2, 3], 7) == [1, 3, 3]
    assert emitted_by_step([], 1) == [1]


@pytest.mark.parametrize(("accepted", "tokens"), [([2], 9), ([2, 2, 0], 4), ([], 2)])
def test_steps_that_do_not_make_up_the_response_are_an_error(accepted: list[int], tokens: int) -> None:
    with pytest.raises(ValueError, match="do not make up"):
        emitted_by_step(accepted, tokens)
