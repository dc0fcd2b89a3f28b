# SPDX-License-Identifier: Apache-2.0
"""What adaptive trees learn from steps, without a runner."""

from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch

from redrafter_vllm.adaptive.budget import Budget
from redrafter_vllm.adaptive.costs import MeasuredCosts
from redrafter_vllm.integration.worker import adaptive_trees


@pytest.fixture
def trees(monkeypatch: pytest.MonkeyPatch) -> adaptive_trees.AdaptiveTrees:
    """Steps of up to 16 requests: 10 s and 1 s for each row, and rounds of 1 s for each request."""
    costs = MeasuredCosts([(1, 11.0), (64, 74.0)], 0.0, [(1, 1.0), (16, 16.0)])
    monkeypatch.setattr(adaptive_trees, "measure_costs", lambda runner, speculator: costs)
    runner: Any = SimpleNamespace(max_num_reqs=16, max_num_tokens=64, decode_query_len=4)
    speculator: Any = SimpleNamespace(drafting=SimpleNamespace(num_speculative_tokens=3))
    found = adaptive_trees.AdaptiveTrees(runner, speculator)
    found.rounds._measured_loads = set(range(10))  # as if steps without rounds were known at all of them
    return found


def end_step(trees: adaptive_trees.AdaptiveTrees, num_reqs: int, num_nodes: int = 0, *, is_timed: bool = True) -> None:
    """A step of so many requests has ended, which accepted all nodes; where it is not timed, nothing is judged."""
    batch: Any = SimpleNamespace(has_prefill=False, num_reqs=num_reqs, num_tokens=num_reqs + num_nodes)
    if is_timed:
        trees.begin_step()
    trees.end_verification(batch, torch.tensor([num_reqs + num_nodes]))


@pytest.mark.parametrize("num_nodes", [0, 3])
def test_a_step_with_drafts_and_without(trees: adaptive_trees.AdaptiveTrees, num_nodes: int) -> None:
    """A request that switches drafts off has only steps of one row."""
    end_step(trees, 1, num_nodes)
    assert (
        trees.records.unlogged.steps == 1
        and trees.records.unlogged.nodes == trees.records.unlogged.accepted == num_nodes
    )


def test_a_load_at_which_drafting_loses_draws_no_round(trees: adaptive_trees.AdaptiveTrees) -> None:
    """One request: 1.9 tokens in 13 s, or 1 in 11 s. Of 16: 30.4 in 58 s, or 16 in 26 s."""
    trees.outlook.remember(np.array([[0.9, 0.0, 0.0]]), np.array([[1, 2, 3]]))
    for num_reqs, is_drawn in ((1, True), (16, False), (1, True)):
        end_step(trees, num_reqs, is_timed=False)
        assert trees.begins_round(True) == is_drawn
        assert not trees.begins_round(False)


class Clock:
    """`time`, which stands still unless it is told."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.mark.parametrize(("between", "is_drawn"), [(13.0, False), (14.0, True)])
def test_what_the_engine_does_between_two_steps_counts(
    trees: adaptive_trees.AdaptiveTrees, monkeypatch: pytest.MonkeyPatch, between: float, is_drawn: bool
) -> None:
    """Of 16 requests: 30.4 tokens in 58 s or 16 in 26 s, and in either case the time to the next step.

    The gain is 1.044 with 13 s of it, and 1.056 with 14 s.

    The wait before a prompt does not count, as there was nothing to do, nor does the round.
    """
    clock = Clock()
    monkeypatch.setattr(adaptive_trees, "time", clock)
    trees.outlook.remember(np.array([[0.9, 0.0, 0.0]]), np.array([[1, 2, 3]]))
    for has_prefill, wait in ((True, 1000.0), (False, between), (False, between)):
        clock.now += wait
        trees.begin_step()
        clock.now += 26.0
        batch: Any = SimpleNamespace(has_prefill=has_prefill, num_reqs=16, num_tokens=16)
        trees.end_verification(batch, torch.tensor([16]))
        clock.now += 16.0
        trees.end_drafting(16)
    assert trees.costs.between(16, is_drawn=True) == pytest.approx(between)
    assert trees.begins_round(True) == is_drawn
    # By the clock the round, too, is in each of the two steps that only decode.
    assert trees.take_counts().passed_us == pytest.approx(2 * (16 + between + 26) * 1e6, abs=1)


def test_sizes_that_no_step_has_had_are_tried(trees: adaptive_trees.AdaptiveTrees) -> None:
    trees.costs.observe_verification(3, 1, 13.0)
    tried = [trees._to_try(1, 4) for _ in range(4)]
    assert tried == [None, None, None, 1]  # nodes of the smallest such size
    for rows in (2, 4):
        trees.costs.observe_verification(rows, 1, 10.0 + rows)
    assert {trees._to_try(1, 4) for _ in range(20)} == {None}


def test_a_step_after_a_round_is_none_without_drafting(
    trees: adaptive_trees.AdaptiveTrees, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even one that verifies nothing: the drafter's weights have taken the place of the target's in the caches."""
    clock = Clock()
    monkeypatch.setattr(adaptive_trees, "time", clock)
    for is_drawn, seconds in ((False, 15.0), (True, 22.0)):
        trees.rounds.is_drawn = is_drawn
        for _ in range(2):
            trees.begin_step()
            clock.now += seconds
            end_step(trees, 1, is_timed=False)
    assert trees.costs.plain(1) == pytest.approx(15.0)
    assert trees.costs.verification(1, 1, 1)[0] == pytest.approx(22.0)


def stored_tree(trees: adaptive_trees.AdaptiveTrees, *survival: float) -> None:
    """One request's tree that awaits verification, of nodes with this survival."""
    beam_steps = torch.ones(1, 3, dtype=torch.int64)
    padded = torch.tensor([[*survival, *[0.0] * (3 - len(survival))]])
    trees.speculator.survival = SimpleNamespace(  # type: ignore[assignment]
        log_survival=padded.log(), beam_steps=lambda rows: beam_steps
    )
    trees.speculator.rows = SimpleNamespace(num_nodes=torch.tensor([len(survival)]))  # type: ignore[assignment]


def test_sizes_that_cannot_pay_are_not_tried(trees: adaptive_trees.AdaptiveTrees) -> None:
    """One node pays, 1.9 tokens in 13 s: two are tried, and three, which take longer still, never."""
    stored_tree(trees, 0.9, 0.01, 0.01)
    tried = set()
    for _ in range(4 * adaptive_trees.TRIAL_INTERVAL):
        nodes = int(trees._choose(np.array([0]), np.array([3]), 1, 1).num_nodes[0])
        trees.costs.observe_verification(1 + nodes, 1, 11.0 + nodes)
        tried.add(nodes)
    assert tried == {1, 2}


def test_the_first_step_of_a_number_of_rows_corrects_no_costs(
    trees: adaptive_trees.AdaptiveTrees, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its products are prepared; the second one has no other reason to take twice as long as was measured."""
    clock = Clock()
    monkeypatch.setattr(adaptive_trees, "time", clock)
    trees.rounds.is_drawn = True
    for expected in (13.0, 26.0):
        trees.begin_step()
        clock.now += 26.0
        trees.end_verification(
            SimpleNamespace(has_prefill=False, num_reqs=1, num_tokens=3),  # type: ignore[arg-type]
            torch.tensor([1]),
        )
        assert trees.costs.verification(3, 3, 1)[0] == pytest.approx(expected)


@pytest.mark.parametrize(("accepted", "num_nodes"), [(100.0, 1), (40.0, 0)])
def test_broken_promises_make_budgets_smaller(
    trees: adaptive_trees.AdaptiveTrees, accepted: float, num_nodes: int
) -> None:
    """A node of survival 0.1: 1.1 tokens in 13 s, next round included, or 1 in 12 s. With 0.05 it does not pay."""
    stored_tree(trees, 0.1)
    trees.costs.observe_verification(1, 1, 11.0)
    trees.outlook.grade(100.0, accepted)
    budget = trees._choose(np.array([0]), np.array([1]), 1, 1)
    assert budget.num_nodes.tolist() == [num_nodes]


def test_trees_of_short_rounds_are_known_as_such(trees: adaptive_trees.AdaptiveTrees) -> None:
    stored_tree(trees, 0.9, 0.5)
    known = []
    for beam_steps in (0, 1, 0):  # a round of one is whole here
        trees.rounds.beam_steps = beam_steps
        trees._choose(np.array([0]), np.array([2]), 1, 1)
        known.append((trees.outlook.num_trees, trees.outlook._whole.number))
    assert known == [(1, 0), (2, 1), (3, 1)]
    assert trees.outlook._recent.drawn_by(0, 3)[::2].tolist() == [pytest.approx([0.9, 0.5, 0.0])] * 2


PROMPT = 40  # rows


def end_step_with_a_prompt(trees: adaptive_trees.AdaptiveTrees, accepted: int) -> None:
    """A step with 4 requests of one node each, expected to be accepted, beside a part of a fifth one's prompt."""
    trees._budget = Budget(np.array([1, 1, 1, 1, 0]), 8.0, 1.0)
    trees._num_others, trees._num_emitting, trees.rounds.is_drawn = 4 + PROMPT, 4, True
    trees.begin_step()
    batch: Any = SimpleNamespace(has_prefill=True, num_reqs=5, num_tokens=8 + PROMPT)
    trees.end_verification(batch, torch.tensor([2] * accepted + [1] * (4 - accepted) + [0]))


@pytest.mark.parametrize(("accepted", "pays"), [(4, True), (0, False)])
def test_steps_with_prompts_tell_whether_drafting_pays(
    trees: adaptive_trees.AdaptiveTrees, accepted: int, pays: bool
) -> None:
    """4 tokens in 54 s beside the prompt, or 8 in 63 s; where all fail, 4 in 63 s. Costs stay as they are."""
    before = trees.costs.verification(1, 16, 1).tolist(), trees.costs.between(5, is_drawn=True)
    for _ in range(200):
        end_step_with_a_prompt(trees, accepted)
    assert trees.outlook.trust == 1.0 if pays else trees.outlook.trust < 0.1
    assert trees.begins_round(True) == pays
    assert (trees.costs.verification(1, 16, 1).tolist(), trees.costs.between(5, is_drawn=True)) == before
    assert trees.records.unlogged.steps == 0


def test_a_step_with_prompts_alone_judges_nothing(trees: adaptive_trees.AdaptiveTrees) -> None:
    trees.rounds.is_drawn = True
    trees.begin_step()
    with patch.object(trees.rounds, "judge") as judged:
        trees.end_verification(
            SimpleNamespace(has_prefill=True, num_reqs=1, num_tokens=PROMPT),  # type: ignore[arg-type]
            torch.tensor([0]),
        )
    judged.assert_not_called()
    assert trees.outlook.trust == 1.0
