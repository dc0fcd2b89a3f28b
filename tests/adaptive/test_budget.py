# SPDX-License-Identifier: Apache-2.0
"""The budget of a step against a search through all budgets."""

from itertools import product

import numpy as np
import pytest

from redrafter_vllm.adaptive.budget import choose_budget, given_budget, saved_steps, survival_of


def least_time(survival: np.ndarray, seconds: np.ndarray) -> float:
    """The lowest sum of all requests' seconds per token over every number of nodes of every request."""
    counts = [range(1 + int((row > 0).sum())) for row in survival]
    return min(
        sum(seconds[sum(nodes)] / (1 + row[:n].sum()) for row, n in zip(survival, nodes, strict=True))
        for nodes in product(*counts)
    )


@pytest.mark.parametrize("seed", range(30))
def test_no_other_budget_takes_less_time(seed: int) -> None:
    rng = np.random.default_rng(seed)
    survival = rng.random((3, 4)).cumprod(axis=1)
    survival[rng.random((3, 1)) * 5 < np.arange(4)] = 0  # fewer nodes than slots
    seconds = 1 + np.cumsum(rng.random(13) * rng.choice([0.01, 0.1, 1]))
    num_nodes, tokens, duration = choose_budget(survival, 3, seconds[: 1 + int((survival > 0).sum())])
    assert tokens == pytest.approx(3 + sum(row[:n].sum() for row, n in zip(survival, num_nodes, strict=True)))
    assert duration == seconds[num_nodes.sum()]
    own = [duration / (1 + row[:n].sum()) for row, n in zip(survival, num_nodes, strict=True)]
    assert sum(own) == pytest.approx(least_time(survival, seconds))


def test_rows_without_a_price_are_all_taken_and_expensive_ones_left_out() -> None:
    survival = np.array([[0.9, 0.5, 0.0], [0.2, 0.1, 0.05]])
    assert choose_budget(survival, 2, np.full(6, 0.01)).num_nodes.tolist() == [2, 3]
    assert choose_budget(survival, 2, 0.01 * np.arange(1, 7)).num_nodes.tolist() == [0, 0]


def test_one_request_that_repeats_itself_does_not_delay_the_others() -> None:
    """Four requests in 16 s, 1 s for each further row; one has four sure nodes.

    All of them would make 8 tokens in 20 s of 4 in 16 s, 1.6 times the speed, where three requests take a quarter
    longer. The mean time per token is 14.9 s with one node, (17 / 2 + 3 · 17) / 4, and 15 s with two.
    """
    survival = np.zeros((4, 4))
    survival[2] = 1.0
    budget = choose_budget(survival, 4, np.arange(16.0, 21.0))
    assert budget.num_nodes.tolist() == [0, 0, 1, 0]
    assert (budget.tokens, budget.seconds) == (5.0, 17.0)


def test_a_given_number_of_nodes_are_the_best_ones() -> None:
    survival = np.array([[0.9, 0.5, 0.0], [0.6, 0.1, 0.05]])
    chosen = given_budget(survival, 2, np.arange(1.0, 7.0), 3)
    assert chosen.num_nodes.tolist() == [2, 1]
    assert chosen.tokens == pytest.approx(4.0) and chosen.seconds == 4.0
    assert given_budget(survival, 2, np.arange(1.0, 7.0), 50).num_nodes.tolist() == [2, 3]


def test_survival_and_saved_steps_are_each_others_inverse() -> None:
    """1, 1.5, 1.75 and 1.75 tokens per step; what no tree saves is taken for certain nodes."""
    survival = np.array([[0.5, 0.25, 0.0]])
    saved = np.array([[1 - 1 / 1.5, 1 / 1.5 - 1 / 1.75, 0.0]])
    assert saved_steps(survival) == pytest.approx(saved)
    assert survival_of(saved) == pytest.approx(survival)
    assert survival_of(np.array([[0.5, 0.45, 0.4]])) == pytest.approx(np.ones((1, 3)))


def test_a_batch_without_nodes() -> None:
    budget = choose_budget(np.zeros((2, 4)), 2, np.array([0.02]))
    assert budget.num_nodes.tolist() == [0, 0]
    assert budget.tokens == 2


def test_a_step_that_emits_nothing_verifies_nothing() -> None:
    assert choose_budget(np.zeros((1, 4)), 0, np.array([0.02])).num_nodes.tolist() == [0]
