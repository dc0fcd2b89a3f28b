# SPDX-License-Identifier: Apache-2.0
"""The interface of the training loop to its processes and their storage."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from redrafter_training.distributed import checkpoints
from redrafter_training.distributed.checkpoints import Write
from redrafter_training.utils.command import Interruption

Made = TypeVar("Made")


class TrainContext(ABC):
    """One process among `world_size` equal ones. All of them call every method, in the same order."""

    rank: int
    world_size: int
    device: torch.device
    devices: Sequence[torch.device] | None = None  # all that this process may use, `device` first; None: not assigned

    @abstractmethod
    def latest_checkpoint(self) -> Path | None:
        """Directory of the checkpoint to continue from."""

    @abstractmethod
    def report(self, step: int, metrics: Mapping[str, float], write: Write | None = None) -> None:
        """Publish rank 0's figures after `step` steps and, with `write`, a checkpoint that rank 0 fills.

        Raises:
            CheckpointWriteError: the checkpoint could not be stored; earlier ones are intact.
        """

    @abstractmethod
    def barrier(self) -> None:
        """Wait for all processes."""

    @abstractmethod
    def total(self, values: Tensor) -> Tensor:
        """The sum of `values` over all processes, in all of them."""

    @abstractmethod
    def gather(self, value: Any) -> list[Any]:
        """Every process's `value`, by rank."""

    @abstractmethod
    def wrap(self, module: nn.Module) -> nn.Module:
        """`module` with its gradients averaged over the processes during backward passes."""

    @abstractmethod
    def stoppable(self) -> AbstractContextManager[None]:
        """While entered, `stop_wanted` is called after every step."""

    @abstractmethod
    def stop_wanted(self) -> bool:
        """Whether to stop after this step, with a checkpoint; the same in all processes."""

    def made_by_first(self, make: Callable[[], Made]) -> Made:
        """The result of rank 0's `make`, which must be picklable, in all processes."""
        return self.gather(make() if self.rank == 0 else None)[0]

    def of_first(self, value: float) -> float:
        """Rank 0's value in all processes, for decisions by the clock, which differs between machines."""
        mine = value if self.rank == 0 else 0.0
        return float(self.total(torch.tensor(mine, dtype=torch.float64, device=self.device)))


@dataclass
class LocalContext(TrainContext):
    """A single process; without a `directory` it stores no checkpoints."""

    directory: Path | None = None
    device: torch.device = torch.device("cpu")  # noqa: RUF009 - immutable
    keep: int = 2
    interruption: Interruption = field(default_factory=Interruption)
    rank = 0
    world_size = 1

    def latest_checkpoint(self) -> Path | None:
        return checkpoints.latest(self.directory) if self.directory is not None else None

    def report(self, step: int, metrics: Mapping[str, float], write: Write | None = None) -> None:
        if write is not None and self.directory is not None:
            checkpoints.store(self.directory, step, write, keep=self.keep)

    def barrier(self) -> None:
        return

    def total(self, values: Tensor) -> Tensor:
        return values

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def wrap(self, module: nn.Module) -> nn.Module:
        return module

    def stoppable(self) -> AbstractContextManager[None]:
        return self.interruption.postponed()

    def stop_wanted(self) -> bool:
        return self.interruption.requested
