# SPDX-License-Identifier: Apache-2.0
"""Estimated survival: the drafter's probabilities at first, and what happened after that."""

import math

import numpy as np
import pytest
import torch

from redrafter_vllm import Beams, DraftTree
from redrafter_vllm.adaptive.budget import choose_budget, survival_of
from redrafter_vllm.adaptive.survival import REFIT_INTERVAL, Coefficients, SurvivalEstimator
from redrafter_vllm.drafting.buffers import BatchDrafts
from redrafter_vllm.ops.survival import log_odds_given_parent
from redrafter_vllm.ops.tree_verify import Walk
from tests.drafting.test_tree import random_beams

CPU = torch.device("cpu")


def beams_of(*steps: tuple[list[float], list[int]]) -> Beams:
    """One request's beams, from (probability given the parent, parent) of each step."""
    parents = torch.tensor([list(parents) for _, parents in steps])[None]
    log_probs = torch.tensor([own for own, _ in steps]).log()[None]
    for step in range(1, len(steps)):
        log_probs[:, step] += log_probs[:, step - 1].gather(1, parents[:, step])
    return Beams(torch.arange(parents.numel()).view(parents.shape), parents, log_probs)


TWO_STEPS = beams_of(([0.6, 0.3], [0, 0]), ([0.5, 0.8], [0, 1]))


def test_log_odds_are_those_given_the_parent() -> None:
    expected = torch.tensor([[[0.6 / 0.4, 0.3 / 0.7], [0.5 / 0.5, 0.8 / 0.2]]]).log()
    torch.testing.assert_close(log_odds_given_parent(TWO_STEPS.log_probs, TWO_STEPS.parents), expected)


@pytest.mark.parametrize("size", [(1, 1, 1), (2, 3, 4), (3, 8, 5)])
def test_at_first_the_drafter_is_believed(size: tuple[int, int, int]) -> None:
    batch, width, length = size
    generator = torch.Generator().manual_seed(width)
    own = torch.rand(batch, length, width, generator=generator).clamp(0.001, 0.999).log()
    parents = torch.randint(width, (batch, length, width), generator=generator)
    log_probs = own.clone()
    for step in range(1, length):
        log_probs[:, step] += log_probs[:, step - 1].gather(1, parents[:, step])
    estimator = SurvivalEstimator(4, 8, length, CPU)
    survival = estimator.rank(Beams(torch.zeros_like(parents), parents, log_probs), torch.arange(batch))
    torch.testing.assert_close(survival, log_probs, atol=1e-4, rtol=1e-5)


def test_slope_intercepts_and_offset_by_hand() -> None:
    estimator = SurvivalEstimator(1, 4, 2, CPU, Coefficients(0.5, (-0.2, -0.4)))
    estimator.offsets[0] = 0.3
    survival = estimator.rank(TWO_STEPS, torch.tensor([0])).exp()[0]

    def sigmoid(odds: float, bias: float) -> float:
        return 1 / (1 + math.exp(-(0.5 * math.log(odds) + bias + 0.99 * 0.3)))

    first = [sigmoid(0.6 / 0.4, -0.2), sigmoid(0.3 / 0.7, -0.2)]
    second = [first[0] * sigmoid(1.0, -0.4), first[1] * sigmoid(4.0, -0.4)]
    torch.testing.assert_close(survival, torch.tensor([first, second]))


def test_certain_and_nearly_impossible_tokens_stay_finite_and_no_beam_has_no_chance() -> None:
    log_probs = torch.tensor([[[0.0, -1e30, -torch.inf]]])
    beams = Beams(torch.tensor([[[1, 2, 3]]]), torch.zeros(1, 1, 3, dtype=torch.int64), log_probs)
    survival = SurvivalEstimator(1, 3, 1, CPU).rank(beams, torch.tensor([0]))[0, 0]
    assert survival[:2].isfinite().all()
    assert survival[0] > survival[1] > survival[2] == -torch.inf


def test_the_order_by_survival_keeps_every_prefix_a_tree() -> None:
    beams = random_beams(3, 5, 4, seed=1)
    estimator = SurvivalEstimator(3, 20, 4, CPU, Coefficients(0.3, (0.5, -1.0)))
    tree = DraftTree.from_beams(beams, 20, None, estimator.rank(beams, torch.arange(3)))
    slot = torch.arange(20)
    assert (tree.parents < slot).all()
    above = torch.cat([torch.zeros(3, 1), tree.log_probs], 1).gather(1, tree.parents + 1)
    assert (tree.log_probs <= above).all()


class Simulation:
    """Requests whose nodes are accepted with σ(slope · x + intercept + the request's own offset)."""

    def __init__(self, slope: float, intercepts: list[float], offsets: list[float], width: int = 2) -> None:
        self.slope, self.intercepts, self.offsets = slope, torch.tensor(intercepts), torch.tensor(offsets)
        self.shape = len(offsets), len(intercepts), width
        self.generator = torch.Generator().manual_seed(0)
        self.rows = torch.arange(len(offsets))

    def step(self, estimator: SurvivalEstimator) -> None:
        """One round and its verification. Each request has one path of nodes and, at each depth, one that fails."""
        batch, length, width = self.shape
        p = torch.rand(batch, length, width, generator=self.generator).clamp(0.05, 0.95)
        log_probs = p.log()
        parents = torch.zeros(batch, length, width, dtype=torch.int64)
        for step in range(1, length):
            log_probs[:, step] += log_probs[:, step - 1, :1]
        beams = Beams(torch.zeros_like(parents), parents, log_probs)
        tree = DraftTree.from_beams(beams, length * width, None, estimator.rank(beams, self.rows))
        everything = torch.full((batch,), length * width)
        estimator.store(self.rows, tree, everything, torch.empty(batch, length * width))

        # At most one node of a step is the target's token, so the second one gets what the first one has left.
        odds = torch.logit(p)
        chance = torch.sigmoid(self.slope * odds + self.intercepts[:, None] + self.offsets[:, None, None])
        is_first = torch.rand(batch, length, generator=self.generator) < chance[..., 0]
        path = torch.full((batch, length), -1)
        for row in range(batch):
            for step in range(length):
                if not is_first[row, step]:
                    break
                path[row, step] = (tree.beams[row] == step * width).nonzero()[0, 0]
        valid = torch.arange(length * width) < tree.num_nodes[:, None]
        # Second beams are never accepted here; they would teach something else.
        valid &= tree.beams % width == 0
        empty = torch.zeros(0)
        drafts = BatchDrafts(tree.tokens, tree.parents, tree.depths, empty, valid)
        estimator.grade(self.rows, drafts, Walk(empty, path, empty, empty))


def test_the_truth_is_learned() -> None:
    simulation = Simulation(0.6, [0.4, -0.5], [0.0] * 32)
    estimator = SurvivalEstimator(32, 4, 2, CPU)
    for _ in range(8 * REFIT_INTERVAL):
        simulation.step(estimator)
    assert estimator.num_fits == 8
    assert float(estimator.slope) == pytest.approx(0.6, abs=0.06)
    assert estimator.intercepts.tolist() == pytest.approx([0.4, -0.5], abs=0.1)


def test_a_request_that_differs_gets_an_offset_and_its_row_forgets_it() -> None:
    simulation = Simulation(1.0, [0.0, 0.0], [0.0] * 15 + [-3.0])
    estimator = SurvivalEstimator(16, 4, 2, CPU)
    for _ in range(60):
        simulation.step(estimator)
    assert estimator.offsets[15] < -1.2
    assert estimator.offsets[:15].abs().max() < 0.8
    estimator.open(15)
    assert estimator.offsets[15] == 0


def test_a_request_without_nodes_is_tried_again_as_its_offset_decays() -> None:
    """One token of log-odds 0.405, offset −2, and a node that pays from a survival of 0.25 on: from −1.504 on.

    Each round takes a hundredth of the offset away; 2 · 0.99ⁿ falls below 1.504 with n = 29. Then the node is verified:
    if it fails, the offset is at −1.544, and it is tried again after 3 or 4 rounds. If it is accepted, it stays.
    """
    beams = beams_of(([0.6], [0]))
    seconds = np.array([4.0, 5.0])  # 1 token in 4 s, or 1 and the node's survival in 5 s
    empty, rows = torch.zeros(0), torch.tensor([0])
    budgets: dict[int, list[int]] = {}
    for accepted in (-1, 0):
        estimator = SurvivalEstimator(1, 1, 1, CPU)
        estimator.offsets[0] = -2.0
        budgets[accepted] = []
        for _ in range(40):
            tree = DraftTree.from_beams(beams, 1, None, estimator.rank(beams, rows))
            estimator.store(rows, tree, torch.tensor([1]), torch.empty(1, 1))
            survival = estimator.log_survival[:1].exp().numpy()
            nodes = int(choose_budget(survival, 1, seconds).num_nodes[0])
            budgets[accepted].append(nodes)
            if nodes:
                drafts = BatchDrafts(tree.tokens, tree.parents, tree.depths, empty, torch.tensor([[True]]))
                estimator.grade(rows, drafts, Walk(empty, torch.tensor([[accepted]]), empty, empty))
    assert budgets[0] == [0] * 28 + [1] * 12
    assert budgets[-1] == [0] * 28 + [1, 0, 0, 1, 0, 0, 1, 0, 0, 0, 1, 0]


def test_only_children_of_accepted_nodes_with_a_row_are_graded() -> None:
    """The first step's beam 0 is accepted, then nothing: nodes below beam 1 and nodes without a row say nothing."""
    estimator = SurvivalEstimator(1, 4, 2, CPU)
    rows = torch.tensor([0])
    tree = DraftTree.from_beams(TWO_STEPS, 4, None, estimator.rank(TWO_STEPS, rows))
    # By probability: 0.6, 0.3 (both of the first step), 0.3 (below beam 0), 0.24 (below beam 1).
    assert tree.depths.tolist() == [[1, 1, 2, 2]]
    assert tree.parents.tolist() == [[-1, -1, 0, 1]]
    confidences = torch.full((1, 4), torch.nan)
    estimator.store(rows, tree, torch.tensor([3]), confidences)
    # 1, 1.6, 1.9 and 2.2 tokens a step; products along the list are the steps per token that each node saves, as
    # shares of 1/2. The last node is beyond the budget.
    saved = torch.tensor([[1 - 1 / 1.6, 1 / 1.6 - 1 / 1.9, 1 / 1.9 - 1 / 2.2, 0.0]])
    torch.testing.assert_close(0.5 * confidences.cumprod(1), saved)
    survival = survival_of(0.5 * confidences.cumprod(1).double().numpy())
    assert survival == pytest.approx(np.array([[0.6, 0.3, 0.3, 0.0]]), abs=1e-6)
    empty = torch.zeros(0)
    walk = Walk(empty, torch.tensor([[0, -1]]), empty, empty)
    valid = torch.tensor([[True, False, True, True]])
    estimator.grade(rows, BatchDrafts(tree.tokens, tree.parents, tree.depths, empty, valid), walk)
    *_, slope_gradient, intercept_gradient, graded = estimator.estimates.sums[0]
    assert graded.tolist() == [1, 1]
    assert intercept_gradient.tolist() == pytest.approx([1 - 0.6, -0.5])
    assert slope_gradient.tolist() == pytest.approx([(1 - 0.6) * math.log(1.5), 0.0], abs=1e-6)


def test_a_slope_that_ranks_backwards_is_refused() -> None:
    with pytest.raises(ValueError, match="slope"):
        Coefficients(-1.0)
