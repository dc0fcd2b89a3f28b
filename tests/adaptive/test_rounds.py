# SPDX-License-Identifier: Apache-2.0
"""Whether a round follows a step, on any device."""

import pytest

from redrafter_vllm.adaptive.costs import MeasuredCosts, StepCosts
from redrafter_vllm.adaptive.rounds import PLAIN_INTERVAL, PLAIN_RUN, RoundChoice


@pytest.fixture
def rounds() -> RoundChoice:
    """For steps of 10 s and 1 s for each row, and rounds of 1 s for each request."""
    costs = MeasuredCosts([(1, 11.0), (64, 74.0)], 0.0, [(1, 1.0), (16, 16.0)])
    return RoundChoice(StepCosts(costs, 64, 16), 3)


def skip_plain_run(rounds: RoundChoice, num_reqs: int) -> None:
    for _ in range(PLAIN_RUN):
        assert not rounds.choose(num_reqs, is_wanted=True)


def test_no_rounds_are_drawn_for_some_steps_at_every_load_and_now_and_then(rounds: RoundChoice) -> None:
    drawn = [rounds.choose(1, is_wanted=True) for _ in range(2 * PLAIN_INTERVAL)]
    without = [step for step, is_drawn in enumerate(drawn) if not is_drawn]
    assert without == [*range(PLAIN_RUN), *range(PLAIN_INTERVAL, PLAIN_INTERVAL + PLAIN_RUN)]
    assert [rounds.choose(4, is_wanted=True) for _ in range(PLAIN_RUN + 1)] == [False] * PLAIN_RUN + [True]
    assert not rounds.is_paused  # they are not left out because they would not pay


def test_a_pause_at_one_load_does_not_hold_at_another(rounds: RoundChoice) -> None:
    skip_plain_run(rounds, 16)
    skip_plain_run(rounds, 1)
    while rounds.choose(16, is_wanted=True):
        rounds.judge(16, 16.0, 2.0, 16.0, 1.0)
    assert rounds.is_paused
    assert rounds.choose(1, is_wanted=True) and not rounds.is_paused
    assert not rounds.choose(16, is_wanted=True)


def test_what_nobody_wants_is_not_drawn_and_is_no_pause(rounds: RoundChoice) -> None:
    assert not rounds.choose(1, is_wanted=False) and not rounds.is_paused
