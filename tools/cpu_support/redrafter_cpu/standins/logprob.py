# SPDX-License-Identifier: Apache-2.0
"""Stand-ins for `vllm.v1.worker.gpu.sample.logprob`: log-probabilities and ranks of chosen tokens."""

from __future__ import annotations

import numpy as np
import torch

from redrafter_cpu.arrays import Array, load, padded, view

_MIN = np.float32(-np.inf)


def topk_log_softmax(
    grid: tuple[int, ...],
    output_ptr: torch.Tensor,  # [R, K] float32, out
    logits_ptr: torch.Tensor,  # [R, V]
    logits_stride: int,
    topk_ids_ptr: torch.Tensor,  # [R, K]
    topk_ids_stride: int,
    topk: int,
    vocab_size: int,
    BLOCK_SIZE: int,
    TOPK_BLOCK_SIZE: int,
) -> None:
    """Log-probabilities of the given tokens."""
    logits = load(logits_ptr)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        greatest = np.fmax.reduce(logits, axis=1, initial=_MIN)[:, None]
        sums = _sum_by_blocks(np.exp(logits - greatest), BLOCK_SIZE)
        chosen = np.take_along_axis(logits, view(topk_ids_ptr).astype(np.int64), axis=1)
        view(output_ptr)[...] = chosen - greatest - np.log(sums)[:, None]


def _sum_by_blocks(values: Array, block: int) -> Array:
    """`[R]` sums, added up block by block as the kernel does: the order decides the last bit."""
    partial = padded(values, block, 0.0).sum(axis=-1)
    total = np.zeros(len(values), dtype=np.float32)
    for i in range(partial.shape[1]):
        total += partial[:, i]
    return total


def ranks(
    grid: tuple[int, ...],
    output_ptr: torch.Tensor,  # [R] int64, out
    logits_ptr: torch.Tensor,  # [R, V]
    logits_stride: int,
    token_ids_ptr: torch.Tensor,  # [R]
    vocab_size: int,
    BLOCK_SIZE: int,
) -> None:
    """How many tokens are at least as probable as the given one, itself included."""
    logits = load(logits_ptr)
    own = np.take_along_axis(logits, view(token_ids_ptr).astype(np.int64)[:, None], axis=1)
    counts = (logits >= own).sum(axis=1)
    # The kernel fills the last block up with -inf, which a token of -inf does not exceed.
    filled = -vocab_size % BLOCK_SIZE
    view(output_ptr)[...] = counts + np.where(own[:, 0] == _MIN, filled, 0)
