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
            for name, value in finite(figures).items():
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def finite(figures: Mapping[str, float]) -> dict[str, float]:
    """The finite figures by the names of the logs: held-out ones get the prefix `held_out/`."""
    named = {name if "/" in name else f"held_out/{name}": value for name, value in figures.items()}
    return {name: value for name, value in named.items() if math.isfinite(value)}
