# SPDX-License-Identifier: Apache-2.0
"""Stand-ins for `vllm.v1.worker.gpu.input_batch`: the integers of a step. A row is a request of the batch."""

from __future__ import annotations

import numpy as np
import torch

from redrafter_cpu.arrays import flat, view


def prepare_prefill_inputs(
    grid: tuple[int, ...],
    input_ids_ptr: torch.Tensor,
    next_prefill_tokens_ptr: torch.Tensor,  # [lookahead, requests]
    next_prefill_tokens_stride: int,
    num_lookahead: int,
    idx_mapping_ptr: torch.Tensor,  # [R]
    query_start_loc_ptr: torch.Tensor,  # [R + 1]
    all_token_ids_ptr: torch.Tensor,  # [requests, max_model_len]
    all_token_ids_stride: int,
    prefill_lens_ptr: torch.Tensor,
    num_computed_tokens_ptr: torch.Tensor,
    BLOCK_SIZE: int,
    LOOKAHEAD_BLOCK: int,
) -> None:
    """Copy the next chunk of the prompt of each request in prefill, and what follows it."""
    inputs, tokens = flat(input_ids_ptr), view(all_token_ids_ptr)
    starts = view(query_start_loc_ptr).tolist()
    following = flat(next_prefill_tokens_ptr)
    for row, request in enumerate(view(idx_mapping_ptr)[: grid[0]].tolist()):
        prefill, computed = int(prefill_lens_ptr[request]), int(num_computed_tokens_ptr[request])
        if computed >= prefill:
            continue
        start, end = starts[row], starts[row + 1]
        if end > start:
            inputs[start:end] = tokens[request, computed : computed + end - start]
        next_position = computed + end - start
        for ahead in range(num_lookahead):
            position = next_position + ahead
            token = tokens[request, position] if position < prefill else 0
            following[ahead * next_prefill_tokens_stride + request] = token


def prepare_pos_seq_lens(
    grid: tuple[int, ...],
    pos_ptr: torch.Tensor,
    seq_lens_ptr: torch.Tensor,
    idx_mapping_ptr: torch.Tensor,  # [R]
    query_start_loc_ptr: torch.Tensor,  # [R + 1]
    num_computed_tokens_ptr: torch.Tensor,
    max_num_reqs: int,
    BLOCK_SIZE: int,
) -> None:
    """Positions of the step's tokens and the length of each sequence after it."""
    rows = grid[0] - 1
    positions, lengths = flat(pos_ptr), flat(seq_lens_ptr)
    starts = view(query_start_loc_ptr)[: rows + 1]
    computed = view(num_computed_tokens_ptr)[view(idx_mapping_ptr)[:rows]]
    queries = starts[1:] - starts[:-1]
    lengths[:rows] = computed + queries
    lengths[rows:max_num_reqs] = 0
    for start, query, base in zip(starts.tolist(), queries.tolist(), computed.tolist(), strict=False):
        if query > 0:
            positions[start : start + query] = np.arange(base, base + query)


def combine_sampled_and_draft_tokens(
    grid: tuple[int, ...],
    input_ids_ptr: torch.Tensor,
    idx_mapping_ptr: torch.Tensor,  # [R]
    last_sampled_tokens_ptr: torch.Tensor,
    query_start_loc_ptr: torch.Tensor,  # [R + 1]
    seq_lens_ptr: torch.Tensor,  # [R]
    prefill_len_ptr: torch.Tensor,
    draft_tokens_ptr: torch.Tensor,  # [requests, drafts]
    draft_tokens_stride: int,
    cu_num_logits_ptr: torch.Tensor,  # [R + 1]
    logits_indices_ptr: torch.Tensor,
    BLOCK_SIZE: int,
    NUM_NEW_SAMPLED_TOKENS: int,
) -> None:
    """The rows that yield logits, and the last sampled token with its drafts as input."""
    inputs, indices, drafts = flat(input_ids_ptr), flat(logits_indices_ptr), flat(draft_tokens_ptr)
    ends = view(query_start_loc_ptr).tolist()
    bounds, lengths = view(cu_num_logits_ptr).tolist(), view(seq_lens_ptr).tolist()
    for row, request in enumerate(view(idx_mapping_ptr)[: grid[0]].tolist()):
        first, last, end = bounds[row], bounds[row + 1], ends[row + 1]
        count = min(last - first, BLOCK_SIZE)
        start = end - (last - first)
        if count > 0:
            indices[first : first + count] = np.arange(start, start + count)
        prefill = int(prefill_len_ptr[request])
        if lengths[row] <= prefill:
            continue
        if NUM_NEW_SAMPLED_TOKENS > 0 and lengths[row] - (last - first) >= prefill:
            inputs[start] = int(last_sampled_tokens_ptr[request])
        num_drafts = last - first - NUM_NEW_SAMPLED_TOKENS
        if num_drafts > 0:
            source, target, width = request * draft_tokens_stride, end - num_drafts, min(num_drafts, BLOCK_SIZE)
            inputs[target : target + width] = drafts[source : source + width]


def get_num_sampled_and_rejected(
    grid: tuple[int, ...],
    num_sampled_ptr: torch.Tensor,  # [R] in and out
    num_rejected_ptr: torch.Tensor,  # [R] out
    seq_lens_ptr: torch.Tensor,  # [R]
    cu_num_logits_ptr: torch.Tensor,  # [R + 1]
    idx_mapping_ptr: torch.Tensor,  # [R]
    prefill_len_ptr: torch.Tensor,
) -> None:
    """A request in the middle of its prefill has sampled and rejected nothing."""
    rows = grid[0]
    prefilling = view(seq_lens_ptr)[:rows] < view(prefill_len_ptr)[view(idx_mapping_ptr)[:rows]]
    sampled, bounds = view(num_sampled_ptr), view(cu_num_logits_ptr)
    sampled[:rows][prefilling] = 0
    rejected = bounds[1 : rows + 1] - bounds[:rows] - sampled[:rows]
    view(num_rejected_ptr)[:rows] = np.where(prefilling, 0, rejected)


def post_update(
    grid: tuple[int, ...],
    idx_mapping_ptr: torch.Tensor,  # [R], negative: skip
    num_computed_tokens_ptr: torch.Tensor,
    last_sampled_tokens_ptr: torch.Tensor,
    output_bin_counts_ptr: torch.Tensor | None,  # [requests, V]
    output_bin_counts_stride: int,
    sampled_tokens_ptr: torch.Tensor,  # [R, drafts + 1]
    sampled_tokens_stride: int,
    num_sampled_ptr: torch.Tensor,  # [R]
    num_rejected_ptr: torch.Tensor,  # [R]
    query_start_loc_ptr: torch.Tensor | None,  # [R + 1]
    all_token_ids_ptr: torch.Tensor,  # [requests, max_model_len]
    all_token_ids_stride: int,
    total_len_ptr: torch.Tensor,
) -> None:
    """Enter the sampled tokens into the request's state."""
    computed, totals, last = view(num_computed_tokens_ptr), view(total_len_ptr), flat(last_sampled_tokens_ptr)
    history, sampled = flat(all_token_ids_ptr), flat(sampled_tokens_ptr)
    counts, rejected = view(num_sampled_ptr).tolist(), view(num_rejected_ptr).tolist()
    starts = view(query_start_loc_ptr).tolist() if query_start_loc_ptr is not None else [0] * (grid[0] + 1)
    for row, request in enumerate(view(idx_mapping_ptr)[: grid[0]].tolist()):
        if request < 0:
            continue
        if (count := counts[row]) > 0:
            source, target = row * sampled_tokens_stride, request * all_token_ids_stride + int(totals[request])
            tokens = sampled[source : source + count]
            history[target : target + count] = tokens
            last[request] = tokens[-1]
            totals[request] += count
            if output_bin_counts_ptr is not None:
                np.add.at(view(output_bin_counts_ptr)[request], tokens, 1)
        computed[request] += starts[row + 1] - starts[row] - rejected[row]


def post_update_and_drafts(
    grid: tuple[int, ...],
    idx_mapping_ptr: torch.Tensor,  # [R], negative: skip
    num_computed_tokens_ptr: torch.Tensor,
    last_sampled_tokens_ptr: torch.Tensor,
    output_bin_counts_ptr: torch.Tensor | None,  # [requests, V]
    output_bin_counts_stride: int,
    sampled_tokens_ptr: torch.Tensor,  # [R, drafts + 1]
    sampled_tokens_stride: int,
    num_sampled_ptr: torch.Tensor,  # [R]
    num_rejected_ptr: torch.Tensor,  # [R]
    query_start_loc_ptr: torch.Tensor | None,  # [R + 1]
    all_token_ids_ptr: torch.Tensor,  # [requests, max_model_len]
    all_token_ids_stride: int,
    total_len_ptr: torch.Tensor,
    draft_tokens_ptr: torch.Tensor | None,  # [R, drafts]
    draft_tokens_out_ptr: torch.Tensor | None,  # [requests, drafts]
    num_draft_tokens: int,
) -> None:
    """Enter the sampled tokens, and from vLLM 0.33 on the next draft tokens, into the request's state."""
    if draft_tokens_ptr is not None:
        assert draft_tokens_out_ptr is not None
        requests = view(idx_mapping_ptr)[: grid[0]]
        rows = np.flatnonzero(requests >= 0)
        view(draft_tokens_out_ptr)[requests[rows]] = view(draft_tokens_ptr)[rows]
    post_update(
        grid,
        idx_mapping_ptr,
        num_computed_tokens_ptr,
        last_sampled_tokens_ptr,
        output_bin_counts_ptr,
        output_bin_counts_stride,
        sampled_tokens_ptr,
        sampled_tokens_stride,
        num_sampled_ptr,
        num_rejected_ptr,
        query_start_loc_ptr,
        all_token_ids_ptr,
        all_token_ids_stride,
        total_len_ptr,
    )


def post_update_num_computed_tokens(
    grid: tuple[int, ...],
    idx_mapping_ptr: torch.Tensor,  # [R]
    num_computed_tokens_ptr: torch.Tensor,
    query_start_loc_ptr: torch.Tensor,  # [R + 1]
) -> None:
    """Count the step's tokens as computed."""
    starts = view(query_start_loc_ptr)[: grid[0] + 1]
    np.add.at(view(num_computed_tokens_ptr), view(idx_mapping_ptr)[: grid[0]], starts[1:] - starts[:-1])


def expand_idx_mapping(
    grid: tuple[int, ...],
    idx_mapping_ptr: torch.Tensor,  # [R]
    expanded_idx_mapping_ptr: torch.Tensor,
    expanded_local_pos_ptr: torch.Tensor,
    cu_num_logits_ptr: torch.Tensor,  # [R + 1]
    BLOCK_SIZE: int,
) -> None:
    """For each row of logits its request and its place among that request's rows."""
    requests, places = flat(expanded_idx_mapping_ptr), flat(expanded_local_pos_ptr)
    bounds = view(cu_num_logits_ptr).tolist()
    for row, request in enumerate(view(idx_mapping_ptr)[: grid[0]].tolist()):
        start, count = bounds[row], min(bounds[row + 1] - bounds[row], BLOCK_SIZE)
        if count > 0:
            requests[start : start + count] = request
            places[start : start + count] = np.arange(count)
