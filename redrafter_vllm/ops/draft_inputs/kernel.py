# SPDX-License-Identifier: Apache-2.0
# mypy: disable-error-code="no-untyped-def"
"""Preparation of a verification step in one launch; each program takes a few nodes of one request."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from redrafter_vllm.ops.draft_inputs.reference import BatchDrafts, RowLayout, StoredTrees
from redrafter_vllm.ops.variant import Variant

_NODES = 16  # of one program


def draft_inputs(
    drafts: BatchDrafts,
    layout: RowLayout,
    positions: Tensor,  # [tokens]
    stored: StoredTrees,
    idx_mapping: Tensor,  # [B]
    cu_num_logits: Tensor,  # [B + 1]
    logits_indices: Tensor,  # [R]
) -> None:
    """See `reference.draft_inputs`. All but `cu_num_logits` must be contiguous; no request has more than N drafts."""
    num_reqs, num_nodes = drafts.tokens.shape
    if num_reqs == 0:
        return
    _prepare_kernel[(num_reqs, triton.cdiv(num_nodes, _NODES))](
        *_bytes(stored),
        idx_mapping,
        cu_num_logits,
        logits_indices,
        *_bytes(drafts),
        *layout,
        positions,
        num_nodes,
        BLOCK_N=triton.next_power_of_2(num_nodes),
        NODES=_NODES,
        num_warps=_num_warps(num_nodes),
    )


def _num_warps(num_nodes: int) -> int:
    """At most 16 cells of the ancestors' matrix per thread, which fit in registers."""
    return 1 if num_nodes <= 32 else 4


def _bytes(tensors: StoredTrees | BatchDrafts) -> list[Tensor]:
    """Booleans as bytes: a masked load of booleans has no default of its type in Triton."""
    return [x.view(torch.uint8) if x.dtype == torch.bool else x for x in tensors]


@triton.jit
def _prepare_kernel(
    stored_tokens_ptr,  # [P, N]
    stored_parents_ptr,  # [P, N]
    stored_depths_ptr,  # [P, N]
    stored_ancestors_ptr,  # [P, N, N] uint8
    stored_num_nodes_ptr,  # [P]
    idx_mapping_ptr,  # [B]
    cu_num_logits_ptr,  # [B + 1]
    logits_indices_ptr,  # [R]
    tokens_ptr,  # [B, N]
    parents_ptr,  # [B, N]
    depths_ptr,  # [B, N]
    ancestors_ptr,  # [B, N, N] uint8
    valid_ptr,  # [B, N] uint8
    first_row_ptr,  # [B]
    num_drafts_ptr,  # [B]
    root_token_ptr,  # [B]
    req_of_row_ptr,  # [R]
    local_of_row_ptr,  # [R]
    positions_ptr,  # [tokens]
    num_nodes,
    BLOCK_N: tl.constexpr,
    NODES: tl.constexpr,
):
    req = tl.program_id(0).to(tl.int64)
    node_C = tl.program_id(1) * NODES + tl.arange(0, NODES)
    exists_C = node_C < num_nodes
    row = tl.load(idx_mapping_ptr + req).to(tl.int64)
    first_row = tl.load(cu_num_logits_ptr + req).to(tl.int64)
    num_drafts = tl.load(cu_num_logits_ptr + req + 1).to(tl.int64) - first_row - 1
    root_token = tl.load(logits_indices_ptr + first_row).to(tl.int64)
    num_valid = tl.minimum(tl.load(stored_num_nodes_ptr + row), num_drafts)
    valid_C = node_C < num_valid

    from_C = row * num_nodes + node_C
    to_C = req * num_nodes + node_C
    depth_C = tl.load(stored_depths_ptr + from_C, mask=exists_C, other=0)
    tl.store(tokens_ptr + to_C, tl.load(stored_tokens_ptr + from_C, mask=exists_C, other=0), mask=exists_C)
    tl.store(parents_ptr + to_C, tl.load(stored_parents_ptr + from_C, mask=exists_C, other=-1), mask=exists_C)
    tl.store(depths_ptr + to_C, depth_C, mask=exists_C)
    tl.store(valid_ptr + to_C, valid_C.to(tl.uint8), mask=exists_C)

    # No program writes the root's position, which all of them read.
    scheduled_C = exists_C & (node_C < num_drafts)
    behind_C = tl.where(valid_C, depth_C, node_C + 1)
    root_position = tl.load(positions_ptr + root_token)
    tl.store(positions_ptr + root_token + 1 + node_C, root_position + behind_C, mask=scheduled_C)
    tl.store(req_of_row_ptr + first_row + 1 + node_C, req, mask=scheduled_C)
    tl.store(local_of_row_ptr + first_row + 1 + node_C, node_C + 1, mask=scheduled_C)
    if tl.program_id(1) == 0:
        tl.store(first_row_ptr + req, first_row)
        tl.store(num_drafts_ptr + req, num_drafts)
        tl.store(root_token_ptr + req, root_token)
        tl.store(req_of_row_ptr + first_row, req)
        tl.store(local_of_row_ptr + first_row, 0)

    column_N = tl.arange(0, BLOCK_N)
    inside_CN = exists_C[:, None] & (column_N < num_nodes)[None, :]
    cell_CN = node_C[:, None] * num_nodes + column_N[None, :]
    square = num_nodes * num_nodes
    sees_CN = tl.load(stored_ancestors_ptr + row * square + cell_CN, mask=inside_CN & valid_C[:, None], other=0)
    sees_CN = (sees_CN != 0) | (node_C[:, None] == column_N[None, :])
    tl.store(ancestors_ptr + req * square + cell_CN, sees_CN.to(tl.uint8), mask=inside_CN)


def variants() -> list[Variant]:
    """Compiled ahead of time in the tests: default and full trees."""
    return [_variant("n16", 16), _variant("n128", 128)]


def _variant(name: str, num_nodes: int) -> Variant:
    types = {argument: "*i64" for argument in _prepare_kernel.arg_names if argument.endswith("_ptr")}
    types |= dict.fromkeys(("stored_ancestors_ptr", "ancestors_ptr", "valid_ptr"), "*u8")
    types |= {"cu_num_logits_ptr": "*i32", "num_nodes": "i32"}
    return Variant(
        name, _prepare_kernel, types, {"BLOCK_N": num_nodes, "NODES": _NODES}, num_warps=_num_warps(num_nodes)
    )
