# SPDX-License-Identifier: Apache-2.0
"""Stand-ins for the kernels of `vllm.v1.worker.gpu.sample` that change logits: min-p, penalties."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from redrafter_cpu.arrays import Array, load, view

_ONE = np.float32(1.0)


def min_p(
    grid: tuple[int, ...],
    logits_ptr: torch.Tensor,  # [R, V]
    logits_stride: int,
    expanded_idx_mapping_ptr: torch.Tensor,  # [R]
    min_p_ptr: torch.Tensor,
    vocab_size: int,
    BLOCK_SIZE: int,
) -> Any:
    """Mask the tokens whose probability is below `min_p` times the greatest."""
    if logits_ptr.dtype != torch.float32:
        return NotImplemented
    logits = view(logits_ptr)
    thresholds = load(min_p_ptr)[view(expanded_idx_mapping_ptr)]
    for row in np.flatnonzero(thresholds):
        values = logits[row]
        greatest = np.fmax.reduce(values, initial=np.float32(-np.inf))
        # One-element arrays: numpy's scalar logarithm is another routine than its array one.
        values[values < greatest + np.log(thresholds[row : row + 1])] = -np.inf
    return None


def penalties(
    grid: tuple[int, ...],
    logits_ptr: torch.Tensor,  # [R, V]
    logits_stride: int,
    expanded_idx_mapping_ptr: torch.Tensor,  # [R]
    token_ids_ptr: torch.Tensor,  # [R]
    expanded_local_pos_ptr: torch.Tensor,  # [R]
    repetition_penalty_ptr: torch.Tensor,
    frequency_penalty_ptr: torch.Tensor,
    presence_penalty_ptr: torch.Tensor,
    prompt_bin_mask_ptr: torch.Tensor,  # [requests, cdiv(V, 32)], one bit a token
    prompt_bin_mask_stride: int,
    output_bin_counts_ptr: torch.Tensor,  # [requests, V]
    output_bin_counts_stride: int,
    vocab_size: int,
    BLOCK_SIZE: int,
) -> Any:
    """Repetition, frequency and presence penalties; earlier drafts of the same request count as output."""
    if logits_ptr.dtype != torch.float32:
        return NotImplemented
    requests = view(expanded_idx_mapping_ptr)
    repetition = view(repetition_penalty_ptr)[requests]
    frequency = view(frequency_penalty_ptr)[requests]
    presence = view(presence_penalty_ptr)[requests]
    logits, tokens, local = view(logits_ptr), view(token_ids_ptr), view(expanded_local_pos_ptr)
    for row in np.flatnonzero((repetition != 1.0) | (frequency != 0.0) | (presence != 0.0)):
        request = requests[row]
        counts = _output_counts(view(output_bin_counts_ptr)[request], tokens, row, int(local[row]), vocab_size)
        values, seen = logits[row], counts > 0
        if repetition[row] != 1.0:
            packed = view(prompt_bin_mask_ptr)[request]
            _repeat_penalty(values, seen | _unpack(packed, vocab_size), repetition[row])
        values -= frequency[row] * counts.astype(np.float32)
        values -= presence[row] * seen.astype(np.float32)
    return None


def _output_counts(counts: Array, tokens: Array, row: int, local: int, vocab_size: int) -> Array:
    """`[V]` occurrences in the output, the drafts before this row included."""
    counts = counts[:vocab_size]
    if local <= 0:
        return counts
    drafts = tokens[row - local + 1 : row + 1]
    counts = counts.copy()
    np.add.at(counts, drafts[(drafts >= 0) & (drafts < vocab_size)], 1)
    return counts


def _repeat_penalty(values: Array, seen: Array, penalty: np.float32) -> None:
    scale = np.where(seen, penalty, _ONE)
    values *= np.where(values > 0, _ONE / scale, scale)


def _unpack(packed: Array, vocab_size: int) -> Array:
    """`[V]` booleans of the packed 32-bit words (bit `t % 32` of word `t // 32`)."""
    return np.unpackbits(np.ascontiguousarray(packed).view(np.uint8), bitorder="little")[:vocab_size].astype(bool)


def bincount(
    grid: tuple[int, ...],
    expanded_idx_mapping_ptr: torch.Tensor,  # [R]
    all_token_ids_ptr: torch.Tensor,  # [requests, max_model_len]
    all_token_ids_stride: int,
    prompt_len_ptr: torch.Tensor,
    prefill_len_ptr: torch.Tensor,
    prompt_bin_mask_ptr: torch.Tensor,  # [requests, cdiv(V, 32)]
    prompt_bin_mask_stride: int,
    output_bin_counts_ptr: torch.Tensor,  # [requests, V]
    output_bin_counts_stride: int,
    BLOCK_SIZE: int,
) -> None:
    """Mark the prompt's tokens and count those generated before a preemption."""
    tokens = view(all_token_ids_ptr)
    masks, counts = view(prompt_bin_mask_ptr), view(output_bin_counts_ptr)
    for request in view(expanded_idx_mapping_ptr).tolist():
        prefill, prompt = int(prefill_len_ptr[request]), int(prompt_len_ptr[request])
        # The kernel works by whole blocks: those that begin before the end of the prefill.
        limit = min(-(-prefill // BLOCK_SIZE), grid[1]) * BLOCK_SIZE
        prompt_tokens = tokens[request, : min(prompt, limit)]
        bits = np.int32(1) << (prompt_tokens % 32).astype(np.int32)
        np.bitwise_or.at(masks[request], prompt_tokens // 32, bits)
        np.add.at(counts[request], tokens[request, prompt : min(prefill, limit)], 1)
