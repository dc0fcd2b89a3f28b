# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest
import torch

from redrafter_training.data.windows import Windows
from redrafter_training.trainer.divergence import MIN_STEPS, DivergedError, Guard

BATCH = Windows.full(torch.arange(6).view(2, 3))


@pytest.mark.parametrize(("loss", "norm"), [(float("nan"), 1.0), (float("inf"), 1.0), (1.0, float("nan"))])
def test_not_finite(loss: float, norm: float, tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match="step 3: the loss is") as caught:
        Guard(3.0).check(3, loss, norm, BATCH)
    stored = torch.load(caught.value.store_batch(tmp_path / "run", 1), weights_only=True)
    assert torch.equal(stored["tokens"], BATCH.tokens)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["failed-step-00000003-rank-1.pt"]


def test_rise_of_the_running_loss() -> None:
    guard = Guard(2.0, [1.0] * (MIN_STEPS - 1))
    guard.check(MIN_STEPS, 1.0, 1.0, BATCH)
    guard.check(MIN_STEPS + 1, 15.0, 1.0, BATCH)  # one bad batch moves the mean to 1.7
    with pytest.raises(DivergedError, match="has risen to 2"):
        guard.check(MIN_STEPS + 2, 15.0, 1.0, BATCH)


def test_first_steps_do_not_count() -> None:
    guard = Guard(2.0)
    for step in range(MIN_STEPS - 1):
        guard.check(step, 0.1 if step < 5 else 50.0, 1.0, BATCH)
