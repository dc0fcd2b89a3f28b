# SPDX-License-Identifier: Apache-2.0
"""Where the estimates of serving start: fitted to nodes that the walk would have graded."""

import pytest
import torch

from redrafter_training.trainer.acceptance import graded_nodes
from redrafter_training.trainer.calibration import fit
from redrafter_vllm import DraftTree
from redrafter_vllm.adaptive.survival import Coefficients


def test_the_walk_grades_the_children_of_what_it_accepts() -> None:
    """Nodes: 7 and 8 under the root, 5 and 6 under 7, 5 under 8, 4 under the first 5; the text goes on 7 6 1."""
    tree = DraftTree(
        tokens=torch.tensor([[7, 8, 5, 6, 5, 4, 0]]),
        parents=torch.tensor([[-1, -1, 0, 0, 1, 2, -1]]),
        depths=torch.tensor([[1, 1, 2, 2, 2, 3, 0]]),
        log_probs=torch.zeros(1, 7),
        beams=torch.zeros(1, 7, dtype=torch.long),
        num_nodes=torch.tensor([6]),
    )
    is_graded, is_accepted = graded_nodes(tree, torch.tensor([[7, 6, 1]]))
    assert is_graded.tolist() == [[True, True, True, True, False, False, False]]
    assert is_accepted.tolist() == [[True, False, False, True, False, False, False]]


def test_the_truth_is_found() -> None:
    generator = torch.Generator().manual_seed(0)
    log_odds = torch.randn(40_000, generator=generator) * 2
    depths = torch.randint(1, 4, (40_000,), generator=generator)
    chance = torch.sigmoid(0.7 * log_odds + torch.tensor([0.0, -0.6, -0.9, 0.3])[depths])
    found = fit(log_odds, depths, torch.rand(40_000, generator=generator) < chance, 4)
    assert found.slope == pytest.approx(0.7, abs=0.03)
    assert found.intercepts == pytest.approx((-0.6, -0.9, 0.3, 0.0), abs=0.06)


def test_few_nodes_change_little() -> None:
    found = fit(torch.tensor([2.0, -1.0]), torch.tensor([1, 1]), torch.tensor([False, True]), 2)
    assert found.slope == pytest.approx(1, abs=0.15)
    assert found.intercepts == pytest.approx((0, 0), abs=0.1)


def test_a_drafter_that_is_wrong_whenever_it_is_sure() -> None:
    log_odds = torch.linspace(-4, 4, 2000)
    assert fit(log_odds, torch.ones(2000, dtype=torch.long), log_odds < 0, 1).slope == 0.01
    assert Coefficients().at_depths(3) == [0, 0, 0]
