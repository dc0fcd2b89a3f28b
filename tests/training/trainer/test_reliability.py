# SPDX-License-Identifier: Apache-2.0
"""Estimated against real acceptance of nodes."""

from pathlib import Path

import pytest
import torch

from redrafter_training.config.recipe import Budget, DistillConfig
from redrafter_training.target.model import TargetModel
from redrafter_training.trainer.acceptance import Drafting, measure
from redrafter_training.trainer.loop import build_drafter
from redrafter_training.trainer.reliability import (
    Bin,
    calibration_error,
    estimate_steps,
    plot_reliability,
    reliability,
)
from redrafter_vllm.adaptive.survival import Coefficients


def test_bins_and_error_by_hand() -> None:
    estimated = torch.tensor([0.02, 0.04, 0.55, 0.59, 1.0])
    bins = reliability(estimated, torch.tensor([False, False, True, False, True]))
    assert [each.count for each in bins] == [2, 2, 1]
    assert [each.accepted for each in bins] == [0.0, 0.5, 1.0]
    assert [each.estimated for each in bins] == pytest.approx([0.03, 0.57, 1.0])
    assert calibration_error(bins) == pytest.approx((2 * 0.03 + 2 * 0.07 + 0) / 5)


def test_every_node_of_every_step_is_estimated_before_it_is_graded(tiny_target: TargetModel) -> None:
    generator = torch.Generator().manual_seed(2)
    texts = [(torch.randint(3, 40, (40,), generator=generator), 10) for _ in range(2)]
    drafter = build_drafter(tiny_target, DistillConfig(Budget(1), beam_length=3))
    drafting = Drafting(3, 3, 9)
    figures = measure(tiny_target, drafter, texts, drafting)
    believed = estimate_steps(tiny_target, drafter, texts, drafting, None)
    assert len(believed.drafter) == len(believed.is_accepted) == 9 * figures.steps
    assert int(believed.is_accepted.sum()) == figures.tokens - figures.steps
    # In the first step of a text nothing has been learned yet: the drafter is believed, or what is stored.
    torch.testing.assert_close(believed.adapted[:9], believed.drafter[:9], atol=1e-3, rtol=1e-3)
    doubted = estimate_steps(tiny_target, drafter, texts, drafting, Coefficients(1.0, (-2.0,)))
    assert (doubted.adapted[:9] < doubted.drafter[:9]).all()


def test_the_picture_is_a_png(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot_reliability({"drafter": [Bin(3, 0.2, 0.1), Bin(1, 0.9, 0.5)]}, tmp_path / "made" / "it.png")
    assert (tmp_path / "made" / "it.png").read_bytes().startswith(b"\x89PNG")
