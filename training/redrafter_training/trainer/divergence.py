# SPDX-License-Identifier: Apache-2.0
"""Stops a diverged training and stores the batch that it diverged on."""

import math
from collections.abc import Iterable
from pathlib import Path

import torch

from redrafter_training.data.windows import Windows

SMOOTHING = 0.95
MIN_STEPS = 50


class DivergedError(FloatingPointError):
    """A loss or gradient that is not finite, or a rising loss; `batch` is this process's share of the step's batch."""

    def __init__(self, message: str, step: int, batch: Windows) -> None:
        super().__init__(message)
        self.step, self.batch = step, batch

    def store_batch(self, directory: Path, rank: int) -> Path:
        """Writes the batch to a file under `directory`.

        `torch.load` reads it as `tokens`, `valid` (the loss mask) and, where rows hold several conversations,
        `document` (the document ids).
        """
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / f"failed-step-{self.step:08d}-rank-{rank}.pt"
        batch = self.batch.to(torch.device("cpu"))
        stored = {"tokens": batch.tokens, "valid": batch.loss_mask, "document": batch.doc_ids}
        torch.save({name: tensor for name, tensor in stored.items() if tensor is not None}, path)
        return path


class Guard:
    """Watches the loss: it must be finite, and its running mean must stay below `max_rise` times its lowest value.

    A rise counts only after `MIN_STEPS` steps, as the first losses are too noisy.
    """

    def __init__(self, max_rise: float, history: Iterable[float] = ()) -> None:
        self.max_rise = max_rise
        self._mean, self._lowest, self._seen = 0.0, math.inf, 0
        for loss in history:
            self._follow(loss)

    def check(self, step: int, loss: float, norm: float, batch: Windows) -> None:
        """Raises DivergedError if the loss and gradient norm of `step`, computed on `batch`, show divergence."""
        if not (math.isfinite(loss) and math.isfinite(norm)):
            problem = f"the loss is {loss} and the gradient's norm {norm}"
        else:
            self._follow(loss)
            if self._seen < MIN_STEPS or self._mean <= self.max_rise * self._lowest:
                return
            problem = f"the running loss has risen to {self._mean:.3g} from {self._lowest:.3g}"
        raise DivergedError(
            f"step {step}: {problem}; lower the learning rate or check the target's weights", step, batch
        )

    def _follow(self, loss: float) -> None:
        self._mean = loss if not self._seen else SMOOTHING * self._mean + (1 - SMOOTHING) * loss
        self._seen += 1
        if self._seen >= MIN_STEPS:
            self._lowest = min(self._lowest, self._mean)
