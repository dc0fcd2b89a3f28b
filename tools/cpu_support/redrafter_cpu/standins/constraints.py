# SPDX-License-Identifier: Apache-2.0
"""Stand-ins for the kernels that forbid or favour tokens: logit bias, bad words, grammar masks."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import torch

from redrafter_cpu.arrays import Array, flat, view

_MASKED = np.float32(-np.inf)


def logit_bias(
    grid: tuple[int, ...],
    logits_ptr: torch.Tensor,  # [R, V]
    logits_stride: int,
    vocab_size: int,
    expanded_idx_mapping_ptr: torch.Tensor,  # [R]
    num_allowed_token_ids_ptr: torch.Tensor,
    allowed_token_ids_ptr: torch.Tensor,
    allowed_token_ids_stride: int,
    num_logit_bias_ptr: torch.Tensor,
    bias_token_ids_ptr: torch.Tensor,
    bias_token_ids_stride: int,
    bias_ptr: torch.Tensor,
    bias_stride: int,
    pos_ptr: torch.Tensor,  # [R]
    min_lens_ptr: torch.Tensor,
    num_stop_token_ids_ptr: torch.Tensor,
    restore_when_all_masked_ptr: torch.Tensor,
    stop_token_ids_ptr: torch.Tensor,
    stop_token_ids_stride: int,
    BLOCK_SIZE: int,
    LOGITS_BLOCK_SIZE: int,
    CHECK_ALL_MASKED_ROWS: bool,
) -> Any:
    """Allowed tokens, then biases, then no stop token before the shortest allowed length."""
    if logits_ptr.dtype != torch.float32:
        return NotImplemented
    logits, positions = view(logits_ptr), view(pos_ptr)
    for row, request in enumerate(view(expanded_idx_mapping_ptr).tolist()):
        values = logits[row]
        if allowed := int(num_allowed_token_ids_ptr[request]):
            _allow_only(values, view(allowed_token_ids_ptr)[request, :allowed])
        if biased := int(num_logit_bias_ptr[request]):
            tokens = view(bias_token_ids_ptr)[request, :biased]
            values[tokens] = values[tokens] + view(bias_ptr)[request, :biased]
        stops = int(num_stop_token_ids_ptr[request])
        if stops > 0 and positions[row] + 1 < int(min_lens_ptr[request]):
            restore = CHECK_ALL_MASKED_ROWS and bool(restore_when_all_masked_ptr[request])
            _mask_stops(values, view(stop_token_ids_ptr)[request, :stops], restore)
    return None


def _allow_only(values: Array, tokens: Array) -> None:
    kept = values[tokens]
    values[...] = _MASKED
    values[tokens] = kept


def _mask_stops(values: Array, tokens: Array, restore: bool) -> None:
    """Mask the stop tokens, unless `restore` is set and nothing else is left."""
    kept = values[tokens]
    values[tokens] = _MASKED
    if restore and np.fmax.reduce(values, initial=_MASKED) == _MASKED:
        finite = np.isfinite(kept)
        values[tokens[finite]] = kept[finite]


def bad_words(
    grid: tuple[int, ...],
    logits_ptr: torch.Tensor,  # [R, V]
    logits_stride: int,
    expanded_idx_mapping_ptr: torch.Tensor,  # [R]
    bad_word_token_ids_ptr: torch.Tensor,
    bad_word_token_ids_stride: int,
    bad_word_offsets_ptr: torch.Tensor,
    bad_word_offsets_stride: int,
    num_bad_words_ptr: torch.Tensor,
    all_token_ids_ptr: torch.Tensor,
    all_token_ids_stride: int,
    prompt_len_ptr: torch.Tensor,
    total_len_ptr: torch.Tensor,
    input_ids_ptr: torch.Tensor,
    expanded_local_pos_ptr: torch.Tensor,  # [R]
) -> Any:
    """Mask the last token of each bad word whose other tokens end the output, drafts before this row included."""
    if logits_ptr.dtype != torch.float32:
        return NotImplemented
    logits, inputs = view(logits_ptr), flat(input_ids_ptr)
    for row, request in enumerate(view(expanded_idx_mapping_ptr).tolist()):
        words = min(int(num_bad_words_ptr[request]), grid[1])
        if words <= 0:
            continue
        local = int(expanded_local_pos_ptr[row])
        prompt, total = int(prompt_len_ptr[request]), int(total_len_ptr[request])
        drafts = inputs[row - local + 1 : row + 1].tolist()
        output = view(all_token_ids_ptr)[request, prompt:total].tolist() + drafts
        offsets = view(bad_word_offsets_ptr)[request, : words + 1].tolist()
        tokens = view(bad_word_token_ids_ptr)[request, : offsets[-1]].tolist()
        for start, end in pairwise(offsets):
            prefix = tokens[start : end - 1]
            if len(prefix) <= len(output) and output[len(output) - len(prefix) :] == prefix:
                logits[row, tokens[end - 1]] = _MASKED
    return None


def grammar_bitmask(
    grid: tuple[int, ...],
    logits_ptr: torch.Tensor,  # [R, V]
    logits_stride: int,
    logits_indices_ptr: torch.Tensor,  # [masks]
    cu_num_logits_ptr: torch.Tensor,
    bitmask_ptr: torch.Tensor,  # [masks, words]
    bitmask_stride: int,
    vocab_size: int,
    MASK_STRIDE: int,
    BLOCK_SIZE: int,
) -> Any:
    """Mask the tokens that the grammar forbids at a position of a request."""
    if logits_ptr.dtype != torch.float32 or bitmask_stride * 32 < vocab_size:
        return NotImplemented
    logits, starts = view(logits_ptr), view(cu_num_logits_ptr)
    for mask, index in enumerate(view(logits_indices_ptr)[: grid[0]].tolist()):
        request, position = divmod(index, MASK_STRIDE)
        if position < int(starts[request + 1] - starts[request]):
            words = np.ascontiguousarray(view(bitmask_ptr)[mask]).view(np.uint8)
            allowed = np.unpackbits(words, bitorder="little")[:vocab_size].astype(bool)
            logits[int(starts[request]) + position, :vocab_size][~allowed] = _MASKED
    return None
