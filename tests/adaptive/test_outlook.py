# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from redrafter_vllm.adaptive.costs import MeasuredCosts, StepCosts
from redrafter_vllm.adaptive.outlook import KEPT, LONGEST_SKIP, VALID, Outlook
from redrafter_vllm.adaptive.pause import TRIAL


def costs_of(row: float, drafting: float = 1.0) -> StepCosts:
    """A step takes 10 s and `row` s for each further row, a round `drafting` s for each request."""
    measured = MeasuredCosts([(1, 10.0), (101, 10.0 + 100 * row)], 0.0, [(1, drafting), (16, 16 * drafting)])
    return StepCosts(measured, 400, 16)


def test_nothing_is_expected_before_a_tree_is_known() -> None:
    assert Outlook(costs_of(1.0), 3).gain(4) == 1.0


def test_one_request() -> None:
    """Both nodes pay: 1 + 0.9 + 0.5 tokens in 10 + 2 · 1 + 1 s, where one token takes 10 s without drafts."""
    outlook = Outlook(costs_of(1.0), 2)
    outlook.remember(np.array([[0.9, 0.5]]))
    assert outlook.gain(1) == pytest.approx(2.4 / 13 * 10)


def test_a_node_that_does_not_pay_is_left_out() -> None:
    outlook = Outlook(costs_of(4.0), 2)
    outlook.remember(np.array([[0.9, 0.1]]))
    assert outlook.gain(1) == pytest.approx(1.9 / 15 * 10)


def test_many_requests_make_the_same_trees_lose() -> None:
    """16 rows take 25 s; with the node of each, 16 · 1.9 tokens in 41 s and a round of 16 s, no node pays."""
    outlook = Outlook(costs_of(1.0), 1)
    outlook.remember(np.array([[0.9]]))
    assert outlook.gain(1) > 1.5
    assert outlook.gain(16) == pytest.approx(16 * 1.9 / 57 * 25 / 16)
    assert outlook.gain(16) < 1


def test_sure_and_unsure_trees_are_told_apart() -> None:
    """Half of the trees are sure: their node is verified, the others' is not; one of 0.5 would not pay."""
    outlook = Outlook(costs_of(6.0, drafting=0.1), 1)
    outlook.remember(np.array([[1.0], [0.0]]))
    assert outlook.gain(1) == pytest.approx((2 + 1) / (16.1 + 10.1) * 10)


def test_old_trees_are_forgotten() -> None:
    outlook = Outlook(costs_of(1.0), 1)
    outlook.remember(np.full((KEPT, 1), 0.9))
    assert outlook.gain(1) > 1.5
    outlook.remember(np.full((KEPT, 1), 0.01))
    for _ in range(VALID):
        outlook.gain(1)
    assert outlook.gain(1) < 1


def test_a_load_at_which_drafting_loses_is_tried_again_after_long() -> None:
    outlook = Outlook(costs_of(1.0), 1)
    outlook.remember(np.array([[0.9]]))
    assert not any(outlook.skips(1) for _ in range(2 * LONGEST_SKIP))
    skipped = [outlook.skips(16) for _ in range(2 * (LONGEST_SKIP + TRIAL))]
    assert skipped == [*[True] * LONGEST_SKIP, *[False] * TRIAL] * 2
