# SPDX-License-Identifier: Apache-2.0
"""Stand-ins for `vllm.v1.worker.gpu.block_table` and `.buffer_utils`: where keys and values lie."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from redrafter_cpu.arrays import Array, flat, int32_at, view


def gather_block_tables(
    grid: tuple[int, ...],
    batch_idx_to_req_idx: torch.Tensor,  # [R]
    src_block_table_ptrs: torch.Tensor,  # [groups] addresses
    dst_block_table_ptrs: torch.Tensor,  # [groups] addresses
    block_table_strides: torch.Tensor,  # [groups]
    num_blocks_ptr: torch.Tensor,  # [groups, requests]
    num_blocks_stride: int,
    num_reqs: int,
    BLOCK_SIZE: int,
) -> None:
    """Copy the batch's rows of the block tables, and zero those that pad the batch."""
    _gather(
        grid,
        view(batch_idx_to_req_idx)[:num_reqs],
        src_block_table_ptrs,
        dst_block_table_ptrs,
        block_table_strides,
        view(num_blocks_ptr),
        np.zeros_like(view(num_blocks_ptr)),
    )


def gather_block_tables_in_windows(
    grid: tuple[int, ...],
    batch_idx_to_req_idx: torch.Tensor,  # [R]
    src_block_table_ptrs: torch.Tensor,  # [groups] addresses
    dst_block_table_ptrs: torch.Tensor,  # [groups] addresses
    block_table_strides: torch.Tensor,  # [groups]
    num_blocks_ptr: torch.Tensor,  # [groups, requests]
    num_blocks_stride: int,
    num_reqs: int,
    num_computed_tokens_ptr: torch.Tensor,  # [requests]
    sliding_window_reach_ptr: torch.Tensor,  # [groups], 0: no window
    block_sizes_ptr: torch.Tensor,  # [groups]
    MASK_SLIDING_WINDOW: bool,
    BLOCK_SIZE: int,
) -> None:
    """As `gather_block_tables`; from vLLM 0.33 on, blocks that lie wholly before a request's window become block 0."""
    passed = np.zeros_like(view(num_blocks_ptr))
    if MASK_SLIDING_WINDOW:
        reach, sizes = view(sliding_window_reach_ptr)[:, None], view(block_sizes_ptr)[:, None]
        before = np.maximum(view(num_computed_tokens_ptr)[None] - reach, 0)
        passed = np.where(reach > 0, before // sizes, 0)
    _gather(
        grid,
        view(batch_idx_to_req_idx)[:num_reqs],
        src_block_table_ptrs,
        dst_block_table_ptrs,
        block_table_strides,
        view(num_blocks_ptr),
        passed,
    )


def _gather(
    grid: tuple[int, ...],
    requests: Array,  # [R]
    sources: torch.Tensor,  # [groups] addresses
    targets: torch.Tensor,  # [groups] addresses
    strides: torch.Tensor,  # [groups]
    held: Array,  # [groups, requests] blocks
    passed: Array,  # [groups, requests]: so many of them, the first ones, become block 0
) -> None:
    groups, rows = grid[0], grid[1]
    source_rows = int(requests.max(initial=-1)) + 1
    for group in range(groups):
        width = int(strides[group])
        source = int32_at(int(sources[group]), source_rows * width).reshape(source_rows, width)
        target = int32_at(int(targets[group]), rows * width).reshape(rows, width)
        for row, request in enumerate(requests[:rows].tolist()):
            first, count = int(passed[group, request]), int(held[group, request])
            target[row, :count] = source[request, :count]
            target[row, : min(first, count)] = 0
        target[len(requests) :] = 0


def compute_slot_mappings(
    grid: tuple[int, ...],
    max_num_tokens: int,
    idx_mapping: torch.Tensor,  # [R], negative: no request
    query_start_loc: torch.Tensor,  # [R + 1]
    pos: torch.Tensor,
    block_table_ptrs: torch.Tensor,  # [groups] addresses
    block_table_strides: torch.Tensor,  # [groups]
    block_sizes: torch.Tensor,  # [groups]
    slot_mapping_enabled: torch.Tensor,  # [groups]
    dcp_sharded: torch.Tensor,  # [groups]
    slot_mappings_ptr: torch.Tensor,  # [groups, tokens] int64, out
    slot_mappings_stride: int,
    cp_rank: int,
    CP_SIZE: int,
    CP_INTERLEAVE: int,
    PAD_ID: int,
    TRITON_BLOCK_SIZE: int,
) -> Any:
    """The slot of each token; those past the last token, and of rows without a request, get `PAD_ID`."""
    if CP_SIZE != 1:
        return NotImplemented
    rows = grid[1] - 1
    starts, positions = view(query_start_loc)[: rows + 1].tolist(), view(pos)
    requests = view(idx_mapping)[:rows].tolist()
    for group in range(grid[0]):
        slots = view(slot_mappings_ptr)[group]
        width, block = int(block_table_strides[group]), int(block_sizes[group])
        enabled = bool(slot_mapping_enabled[group])
        for row, request in enumerate(requests):
            start, end = starts[row], starts[row + 1]
            if request < 0 or not enabled:
                slots[start:end] = PAD_ID
                continue
            table = int32_at(int(block_table_ptrs[group]) + 4 * request * width, width)
            blocks, offsets = np.divmod(positions[start:end], block)
            slots[start:end] = table.take(blocks, mode="clip") * block + offsets
        slots[starts[rows] : max_num_tokens] = PAD_ID
    return None


def apply_write(
    grid: tuple[int, ...],
    output_ptr: torch.Tensor,
    output_stride: int,
    write_indices_ptr: torch.Tensor,  # [writes]
    write_starts_ptr: torch.Tensor,  # [writes]
    write_contents_ptr: torch.Tensor,
    write_cu_lens_ptr: torch.Tensor,  # [writes]
    write_group_ids_ptr: torch.Tensor | None,
    BLOCK_SIZE: int,
    MULTI_GROUP: bool,
) -> Any:
    """Apply staged writes of varying length to rows of one tensor."""
    if MULTI_GROUP:
        return NotImplemented
    output, contents = flat(output_ptr), view(write_contents_ptr)
    begin = 0
    for index, start, end in zip(
        view(write_indices_ptr)[: grid[0]].tolist(),
        view(write_starts_ptr)[: grid[0]].tolist(),
        view(write_cu_lens_ptr)[: grid[0]].tolist(),
        strict=True,
    ):
        target = index * output_stride + start
        output[target : target + end - begin] = contents[begin:end]
        begin = end
    return None
