# SPDX-License-Identifier: Apache-2.0
from unittest.mock import patch

import numpy as np
import pytest

from redrafter_vllm.adaptive.costs import MeasuredCosts, StepCosts
from redrafter_vllm.adaptive.outlook import (
    FIRST_SKIP,
    KEPT,
    LONGEST_SKIP,
    MEMORY,
    PRIOR,
    RECENT,
    VALID,
    WHOLE_ROUND,
    WORTHWHILE,
    Expectation,
    Outlook,
)
from redrafter_vllm.adaptive.pause import TRIAL

SLOW = Expectation(gain=0.5, beam_steps=1)


def costs_of(row: float, drafting: float = 1.0) -> StepCosts:
    """A step takes 10 s and `row` s for each further row, a round `drafting` s for each request."""
    measured = MeasuredCosts([(1, 10.0), (101, 10.0 + 100 * row)], 0.0, [(1, drafting), (16, 16 * drafting)])
    return StepCosts(measured, 400, 16)


def remember(outlook: Outlook, *trees: list[float], beam_steps: list[int] | None = None) -> None:
    """Trees by their nodes' survival; all nodes took one beam step unless others are given."""
    outlook.remember(np.array(trees), np.broadcast_to(beam_steps or 1, (len(trees), len(trees[0]))))


def test_nothing_is_expected_before_a_tree_is_known() -> None:
    outlook = Outlook(costs_of(1.0), 3)
    assert outlook.gain(4) == WORTHWHILE and not outlook.skips(4)


def test_one_request() -> None:
    """Both nodes pay: 1 + 0.9 + 0.5 tokens in 10 + 2 · 1 + 1 s, where one token takes 10 s without drafts."""
    outlook = Outlook(costs_of(1.0), 2)
    remember(outlook, [0.9, 0.5])
    assert outlook.gain(1) == pytest.approx(2.4 / 13 * 10)


def test_a_node_that_does_not_pay_is_left_out() -> None:
    outlook = Outlook(costs_of(4.0), 2)
    remember(outlook, [0.9, 0.1])
    assert outlook.gain(1) == pytest.approx(1.9 / 15 * 10)


def test_many_requests_make_the_same_trees_lose() -> None:
    """16 rows take 25 s; with the node of each, 16 · 1.9 tokens in 41 s and a round of 16 s, no node pays."""
    outlook = Outlook(costs_of(1.0), 1)
    remember(outlook, [0.9])
    assert outlook.gain(1) > 1.5
    assert outlook.gain(16) == pytest.approx(16 * 1.9 / 57 * 25 / 16)
    assert outlook.gain(16) < 1


def test_nothing_is_computed_again_before_there_is_something_new() -> None:
    """While no rounds are drawn no trees come, and a third one says little where there were two."""
    outlook = Outlook(costs_of(1.0), 1)
    computed = []
    with patch.object(outlook, "_expect", lambda num_requests: computed.append(outlook.num_trees) or SLOW):
        remember(outlook, [0.1])
        for _ in range(VALID):
            outlook.gain(1)
        remember(outlook, [0.1])
        for _ in range(3):
            outlook.gain(1)
        remember(outlook, [0.1])
        outlook.gain(1)
        remember(outlook, [0.1])
        for _ in range(VALID + 1):
            outlook.gain(1)
    assert computed == [1, 2, 4, 4]


def test_the_first_trees_count_at_once() -> None:
    """A whole round for 16 requests shows that further ones would lose."""
    outlook = Outlook(costs_of(1.0), 1)
    assert not outlook.skips(16)
    remember(outlook, *[[0.9]] * 16)
    assert outlook.skips(16)


def test_sure_and_unsure_trees_are_told_apart() -> None:
    """Half of the trees are sure: their node is verified, the others' is not; one of 0.5 would not pay."""
    outlook = Outlook(costs_of(6.0, drafting=0.1), 1)
    remember(outlook, [1.0], [0.0])
    assert outlook.gain(1) == pytest.approx((2 + 1) / (16.1 + 10.1) * 10)


def test_requests_that_repeat_themselves_do_not_decide_for_all() -> None:
    """One of 8 has 4 sure nodes. Steps of 8 take 17 s, and 1 s more for each node; a round takes 0.8 s.

    The 12 tokens of all four nodes in 21.8 s are 1.17 times 8 in 17 s. But seven requests would be a fifth slower: the
    harmonic mean of the requests' tokens is 8 / 7.5 with one node and 8 / 7.33 with two. One is best, and loses.
    """
    outlook = Outlook(costs_of(1.0, drafting=0.1), 4)
    remember(outlook, [1.0] * 4, *[[0.0] * 4] * 7)
    assert outlook.gain(8) == pytest.approx(8 / 7.5 * 17 / 18.8)
    assert outlook.skips(8)


def test_old_trees_are_forgotten() -> None:
    outlook = Outlook(costs_of(1.0), 1)
    remember(outlook, *[[0.9]] * KEPT)
    assert outlook.gain(1) > 1.5
    remember(outlook, *[[0.01]] * KEPT)
    for _ in range(VALID):
        outlook.gain(1)
    assert outlook.gain(1) < 1


def test_a_load_at_which_drafting_loses_is_tried_again() -> None:
    """After twice as many steps each time. A trial shows TRIAL trees: one round of 16 requests, two of 4."""
    outlook = Outlook(costs_of(1.0, drafting=4.0), 1)
    remember(outlook, *[[0.9]] * KEPT)
    skips = [FIRST_SKIP * 2**n for n in range(10) if FIRST_SKIP * 2**n < LONGEST_SKIP] + [LONGEST_SKIP] * 2
    for num_requests, num_rounds in ((16, 1), (4, 2)):
        expected = [step for length in skips for step in [True] * length + [False] * num_rounds]
        assert [outlook.skips(num_requests) for _ in expected] == expected
    assert TRIAL == 8


@pytest.mark.parametrize("num_requests", [1, 4])
def test_text_that_cannot_be_drafted_costs_little_after_200_steps(num_requests: int) -> None:
    """A drafter that is sure of itself, of whose tokens one in a hundred is accepted: below 3 % of a step is lost."""
    row, drafting = 0.8, 3.0
    outlook = Outlook(costs_of(row, drafting), 4)
    tree = [0.8, 0.6, 0.4, 0.3]
    lost = []
    for _ in range(1200):
        if outlook.skips(num_requests):
            lost.append(0.0)
            continue
        remember(outlook, *[tree] * num_requests)
        outlook.grade(num_requests * sum(tree), num_requests * 0.01)
        lost.append(num_requests * (drafting + len(tree) * row))  # at most: all nodes are verified
    assert sum(lost[:200]) > 0
    assert sum(lost[200:]) / 1000 < 0.03 * (10 + row * (num_requests - 1))


def short_rounds(first: float, whole: float) -> Outlook:
    """Steps take 10 s and 1 s for each further row, rounds of 1 and of 3 beam steps `first` and `whole` s a request."""
    measured = MeasuredCosts(
        [(1, 10.0), (101, 110.0)],
        0.0,
        [(1, whole), (16, 16 * whole)],
        first_beam_step=[(1, first), (16, 16 * first)],
        beam_length=3,
    )
    return Outlook(StepCosts(measured, 400, 16), 3)


def test_many_requests_get_shorter_rounds() -> None:
    """A chain of survival 0.9, 0.8, 0.7. Beam steps take 0.5 s a request each.

    One request: 3.4 tokens in 10 + 3 + 1.5 s are most; 1.9 in 11.5 s and 2.7 in 13 s are less.
    16 requests, 25 s without drafts: with one beam step 16 · 1.9 tokens in 25 + 16 + 8 s, with two 16 · 2.7 in
    25 + 32 + 16 s, with three 16 · 3.4 in 25 + 48 + 24 s. One round of 16 is whole, which adds 16 s / 16 to the first.
    """
    outlook = short_rounds(0.5, 1.5)
    assert outlook.beam_steps(1) == 3  # before anything is known
    remember(outlook, [0.9, 0.8, 0.7], beam_steps=[1, 2, 3])
    assert outlook.gain(1) == pytest.approx(3.4 / 14.5 * 10)
    assert outlook.gain(16) == pytest.approx(1.9 / 50 * 25)
    assert (outlook.beam_steps(1), outlook.beam_steps(16)) == (3, 1)


def test_siblings_of_the_first_step_are_kept() -> None:
    """Depths count, not places: the second node is the root's other child."""
    outlook = short_rounds(0.0, 16.0)
    remember(outlook, [0.5, 0.4, 0.3], beam_steps=[1, 1, 2])
    assert outlook.gain(1) == pytest.approx(1.9 / 13 * 10)
    assert outlook.beam_steps(1) == 1


def test_copies_of_the_text_take_no_beam_step() -> None:
    """A copy of survival 0.9 and 0.8, and a beam of 0.7; a round without beam steps takes 0.1 s a request.

    One request: 3.4 tokens in 10 + 3 + 1.5 s are most. 16 requests: 16 · 2.7 in 25 + 32 + 1.6 s, with the beam 16 · 3.4
    in 25 + 48 + 8 s; of the second copies, too, the step is slower than with the first alone: 16 · 1.9 in 25 + 16 s.
    """
    measured = MeasuredCosts(
        [(1, 10.0), (101, 110.0)],
        0.0,
        [(1, 1.5), (16, 24.0)],
        [(1, 0.5), (16, 8.0)],
        [(1, 0.1), (16, 1.6)],
        beam_length=3,
    )
    outlook = Outlook(StepCosts(measured, 400, 16), 3)
    remember(outlook, [0.9, 0.8, 0.7], beam_steps=[0, 0, 3])
    outlook.gain(1), outlook.gain(16)
    assert (outlook.beam_steps(1), outlook.beam_steps(16)) == (3, 0)
    short = 1.6 + (24 - 1.6) / WHOLE_ROUND
    tokens, seconds = 16 * np.array([1.9, 2.7]), np.array([25 + 16, 25 + 32]) + short
    assert outlook.gain(16) == pytest.approx((tokens / seconds).max() * 25 / 16)


def test_some_rounds_are_whole() -> None:
    """Those of a trial, too, as nothing else would show that whole ones pay again."""
    outlook = short_rounds(0.5, 1.5)
    remember(outlook, [0.9, 0.8, 0.7], beam_steps=[1, 2, 3])
    assert (outlook.gain(1) > 1) and (outlook.gain(16) < 1)
    assert [outlook.draws(1) for _ in range(WHOLE_ROUND)] == [3] * WHOLE_ROUND
    assert [outlook.draws(16) for _ in range(WHOLE_ROUND)] == [1] * (WHOLE_ROUND - 1) + [3]
    outlook = short_rounds(2.0, 6.0)
    remember(outlook, [0.9, 0.8, 0.7], beam_steps=[1, 2, 3])
    assert all(outlook.skips(16) for _ in range(FIRST_SKIP))
    assert not outlook.skips(16) and outlook.draws(16) == 3


def test_short_rounds_that_no_longer_gain_stop() -> None:
    """Whole rounds say that one beam step is best: 1.9 tokens in 11.5 s. Then the short ones find little.

    A tree of survival 0.01 makes 10 s without drafts into 10.5 s and a sixteenth of the 5.5 s that whole rounds take
    longer. That whole rounds' trees of before would still gain does not count.
    """
    outlook = short_rounds(0.5, 6.0)
    remember(outlook, *[[0.9, 0.01, 0.01]] * KEPT, beam_steps=[1, 2, 3])
    assert outlook.gain(1) == pytest.approx(1.9 / (11.5 + 5.5 / 16) * 10) and outlook.beam_steps(1) == 1
    outlook.remember_short(np.array([[0.01, 0.0, 0.0]] * RECENT), 1)
    for _ in range(VALID):
        outlook.gain(1)
    assert outlook.gain(1) == pytest.approx(10 / (10.5 + 5.5 / 16)) and outlook.beam_steps(1) == 1
    assert outlook.skips(1)


def test_trees_of_shorter_rounds_than_the_best_do_not_count() -> None:
    """They lack nodes that these would have. Those of one beam step say nothing about whole rounds, in 14.5 s."""
    outlook = short_rounds(0.5, 1.5)
    outlook.remember_short(np.array([[0.1, 0.0, 0.0]] * RECENT), 1)
    assert outlook.gain(1) == WORTHWHILE  # as long as no whole round has been drawn
    remember(outlook, [0.9, 0.8, 0.7], beam_steps=[1, 2, 3])
    outlook.remember_short(np.array([[0.1, 0.0, 0.0]] * RECENT), 1)
    for _ in range(VALID):
        outlook.gain(1)
    assert outlook.gain(1) == pytest.approx(3.4 / 14.5 * 10)


def test_the_length_of_rounds_follows_the_text() -> None:
    """Of the trees that count now only the first node is worth something: 1.9 tokens in 11.5 s, and 1 s / 16."""
    outlook = short_rounds(0.5, 1.5)
    remember(outlook, *[[0.9, 0.8, 0.7]] * KEPT, *[[0.9, 0.0, 0.0]] * RECENT, beam_steps=[1, 2, 3])
    assert outlook.gain(1) == pytest.approx(1.9 / (11.5 + 1 / 16) * 10)
    assert outlook.beam_steps(1) == 1


def test_few_trees_of_the_best_rounds_do_not_decide() -> None:
    """Two whole ones and 30 of two beam steps since then, where one is best: of the last 32 whole ones 30 gain."""
    outlook = short_rounds(0.5, 6.0)
    remember(outlook, *[[0.9, 0.01, 0.01]] * KEPT, beam_steps=[1, 2, 3])
    outlook.remember_short(np.array([[0.01, 0.0, 0.0]] * 30), 2)
    remember(outlook, *[[0.01, 0.0, 0.0]] * 2, beam_steps=[1, 2, 3])
    seconds = 10.5 + 5.5 / 16
    assert outlook.gain(1) == pytest.approx((30 * 1.9 + 2) / (30 * (seconds + 1) + 2 * seconds) * 10)


def test_text_that_changes_counts_after_few_steps() -> None:
    """Of one request the trees of the last steps, of many as many as are kept."""
    outlook = Outlook(costs_of(1.0, drafting=0.1), 1)
    remember(outlook, *[[0.9]] * KEPT, *[[0.05]] * RECENT)
    assert outlook.gain(1) == pytest.approx(10 / 10.1)
    # Of 8 requests, 17 s and 0.8 s: 12 batches of trees that gain and 4 of those that do not.
    assert outlook.gain(8) == pytest.approx((12 * 8 * 1.9 + 4 * 8) / (12 * 25.8 + 4 * 17.8) * 17 / 8)


def test_one_trial_is_enough_where_text_can_be_drafted_again() -> None:
    """The trees of 8 rounds are a quarter of those that count: (8 · 1.9 + 24) tokens in 8 · 11.1 + 24 · 10.1 s."""
    outlook = Outlook(costs_of(1.0, drafting=0.1), 1)
    remember(outlook, *[[0.05]] * KEPT)
    while outlook.skips(1):
        pass
    for _ in range(TRIAL):
        remember(outlook, [0.9])
        outlook.skips(1)
    for _ in range(VALID):
        outlook.gain(1)
    assert outlook.gain(1) == pytest.approx((8 * 1.9 + 24) / (8 * 11.1 + 24 * 10.1) * 10)
    assert not outlook.skips(1)


@pytest.mark.parametrize(("survival", "is_drawn"), [(0.34, False), (0.38, True)])
def test_a_gain_must_be_worth_its_uncertainty(survival: float, is_drawn: bool) -> None:
    """1.34 or 1.38 tokens in 13 s, of which one without drafts takes 10 s: gains of 1.031 and 1.062."""
    outlook = Outlook(costs_of(2.0), 1)
    remember(outlook, [survival])
    assert outlook.gain(1) == pytest.approx((1 + survival) / 13 * 10)
    assert outlook.skips(1) != is_drawn


def test_promises_that_were_not_kept() -> None:
    """Half of what was promised was accepted, for long: estimates count half."""
    outlook = Outlook(costs_of(1.0), 1)
    assert outlook.trust == 1
    for _ in range(10 * MEMORY):
        outlook.grade(4.0, 2.0)
    # The weighted sums are 4 and 2 times MEMORY.
    assert outlook.trust == pytest.approx((2 * MEMORY + PRIOR) / (4 * MEMORY + PRIOR), rel=1e-3)
    remember(outlook, [0.9])
    assert outlook.gain(1) == pytest.approx((1 + 0.9 * outlook.trust) / 12 * 10)
    for _ in range(10 * MEMORY):
        outlook.grade(1.0, 2.0)
    assert outlook.trust == 1
