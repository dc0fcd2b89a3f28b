# SPDX-License-Identifier: Apache-2.0
"""TensorBoard logs of a run."""

import math
from collections.abc import Mapping
from pathlib import Path


class Recorder:
    """Writes scalars below `directory`; does nothing without a directory or TensorBoard.

    A resumed run overwrites the logs of steps after the last checkpoint.
    """

    def __init__(self, directory: Path | None, *, purge_step: int | None = None) -> None:
        self._writer = None
        if directory is None:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return
        self._writer = SummaryWriter(str(directory), purge_step=purge_step, flush_secs=10)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        if self._writer is not None:
            for name, value in figures.items():
                if math.isfinite(value):
                    self._writer.add_scalar(_grouped(name), value, step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def _grouped(name: str) -> str:
    """Held-out figures get the prefix `held_out/`."""
    return name if "/" in name else f"held_out/{name}"
