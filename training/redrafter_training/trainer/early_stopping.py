# SPDX-License-Identifier: Apache-2.0
"""Early stopping: a training ends when its held-out figures no longer improve, and the best drafter is kept.

The measure is `chain_estimate` of the evaluations. The divergence would mislead: the default loss sharpens the target's
distribution, so that the divergence from the distribution itself may rise while more draft tokens are right.
"""

from redrafter_training.trainer.metrics import CHAIN
from redrafter_training.trainer.state import Best, Progress
from redrafter_vllm.model.drafter import Drafter


def keep_best(progress: Progress, drafter: Drafter) -> None:
    """Keeps the drafter's weights if its last evaluation is the best so far."""
    step, figures = progress.evaluations[-1]
    if progress.best is None or figures[CHAIN] > measure(progress, progress.best.step):
        weights = {name: tensor.detach().cpu().clone() for name, tensor in drafter.state_dict().items()}
        progress.best = Best(step, weights)


def is_over(progress: Progress, patience: int) -> bool:
    """Whether the last `patience` evaluations were not better than the best one; never with a patience of 0."""
    if not patience or progress.best is None:
        return False
    return sum(step > progress.best.step for step, _ in progress.evaluations) >= patience


def measure(progress: Progress, step: int) -> float:
    """The measure at an evaluated step."""
    return dict(progress.evaluations)[step][CHAIN]


def ending(progress: Progress, patience: int) -> str:
    """Which weights the training ends with, for the user."""
    assert progress.best is not None
    best = f"the drafter is that of step {progress.best.step}, the best of {len(progress.evaluations)} evaluations"
    if not is_over(progress, patience):
        return best
    return f"stopped early after step {progress.step}: no better evaluation in {patience}; {best}"
