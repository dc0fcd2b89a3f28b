# SPDX-License-Identifier: Apache-2.0
"""Ranks as threads of one process, for tests of computations with several ranks."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class ThreadGroup:
    """One rank's view of ranks that exchange tensors through a list; counts the bytes that it sends."""

    def __init__(self, rank: int, box: list[Tensor | None], barrier: Barrier) -> None:
        self.rank_in_group = rank
        self.world_size = len(box)
        self.sent_bytes: list[int] = []
        self._box, self._barrier = box, barrier

    def all_gather(self, input_: Tensor, dim: int = -1) -> Tensor:
        return torch.cat(self._exchange(input_), dim)

    def all_reduce(self, input_: Tensor) -> Tensor:
        return torch.stack(self._exchange(input_)).sum(0)

    def _exchange(self, own: Tensor) -> list[Tensor]:
        self.sent_bytes.append(own.numel() * own.element_size())
        self._box[self.rank_in_group] = own.clone()
        self._barrier.wait(60)
        every = [tensor for tensor in self._box if tensor is not None]
        self._barrier.wait(60)
        return every


def on_ranks(size: int, work: Callable[[ThreadGroup], T]) -> list[T]:
    """The results of `work` on each of `size` ranks, which run in parallel."""
    box: list[Tensor | None] = [None] * size
    barrier = Barrier(size)

    def guarded(rank: int) -> T:
        try:
            return work(ThreadGroup(rank, box, barrier))
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(guarded, range(size)))
