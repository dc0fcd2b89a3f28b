# SPDX-License-Identifier: Apache-2.0
# mypy: disable-error-code="no-untyped-def"
"""Gathering a drafting round's inputs, and storing its trees, in one launch each."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from redrafter_vllm.ops.draft_inputs.reference import StoredTrees
from redrafter_vllm.ops.draft_round.reference import RoundInputs, RoundSource
from redrafter_vllm.ops.prefix_tree.kernel import climb
from redrafter_vllm.ops.variant import Variant

_WIDTH = 1024  # of a context, one program
_NODES = 16  # of a tree, one program


def round_inputs(out: RoundInputs, source: RoundSource, node_budget: int, num_stored: int, padding_row: int) -> None:
    """See `reference.round_inputs`; hidden states may be strided by row, all else must be contiguous.

    Raises ValueError for hidden states of another type than the context's, or that are not contiguous.
    """
    size, hidden_size = out.context.shape
    if size == 0:
        return
    if source.hidden.dtype != out.context.dtype or source.hidden.stride(1) != 1:
        raise ValueError(f"hidden states must be contiguous and {out.context.dtype}, not {source.hidden.dtype}")
    block = min(triton.next_power_of_2(hidden_size), _WIDTH)
    _gather_kernel[(size, triton.cdiv(hidden_size, block))](
        source.hidden,
        source.root_token,
        source.root_token if source.leaf is None else source.leaf,
        source.idx_mapping,
        source.last_sampled,
        source.num_sampled,
        source.beam_limit,
        source.node_limit,
        *out,
        source.idx_mapping.shape[0],
        num_stored,
        padding_row,
        node_budget,
        source.hidden.stride(0),
        hidden_size,
        HAS_LEAF=source.leaf is not None,
        BLOCK_H=block,
        num_warps=4,
    )


def store_trees(
    stored: StoredTrees,
    draft_tokens: Tensor,  # [B, N]
    tokens: Tensor,  # [B, N]
    parents: Tensor,  # [B, N]
    depths: Tensor,  # [B, N]
    num_nodes: Tensor,  # [B]
    rows: Tensor,  # [B]
    node_budget: Tensor,  # [B]
) -> None:
    """See `reference.store_trees`; all must be contiguous."""
    batch, capacity = tokens.shape
    if batch == 0:
        return
    _store_kernel[(batch, triton.cdiv(capacity, _NODES))](
        tokens,
        parents,
        depths,
        num_nodes,
        rows,
        node_budget,
        stored.tokens,
        stored.parents,
        stored.depths,
        stored.ancestors.view(torch.uint8),
        stored.num_nodes,
        draft_tokens,
        capacity,
        BLOCK_N=triton.next_power_of_2(capacity),
        NODES=_NODES,
        num_warps=1,
    )


# Integers that change from step to step must not recompile the kernel when they are 1 or a multiple of 16.
@triton.jit(do_not_specialize=["num_reqs", "num_stored", "padding_row", "node_budget"])
def _gather_kernel(
    hidden_ptr,  # [tokens, H]
    root_token_ptr,  # [B]
    leaf_ptr,  # [B]
    idx_mapping_ptr,  # [B]
    last_sampled_ptr,  # [P, 1]
    num_sampled_ptr,  # [B]
    stored_beam_limit_ptr,  # [P]
    stored_node_limit_ptr,  # [P]
    context_ptr,  # [Z, H]
    roots_ptr,  # [Z]
    rows_ptr,  # [Z]
    node_budget_ptr,  # [Z]
    beam_limit_ptr,  # [Z]
    num_reqs,
    num_stored,
    padding_row,
    node_budget,
    hidden_stride,
    hidden_size,
    HAS_LEAF: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    req = tl.program_id(0)
    column_H = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    inside_H = column_H < hidden_size
    is_req = req < num_reqs
    token = tl.load(root_token_ptr + req, mask=is_req, other=0).to(tl.int64)
    if HAS_LEAF:
        token += tl.load(leaf_ptr + req, mask=is_req, other=0)
    num_read = tl.where(is_req, hidden_size, 0)
    hidden_H = tl.load(hidden_ptr + token * hidden_stride + column_H, mask=column_H < num_read, other=0.0)
    tl.store(
        context_ptr + req.to(tl.int64) * hidden_size + column_H,
        hidden_H,
        mask=inside_H,
    )
    if tl.program_id(1) == 0:
        row = tl.load(idx_mapping_ptr + req, mask=is_req, other=0).to(tl.int64)
        tl.store(roots_ptr + req, tl.load(last_sampled_ptr + row, mask=is_req, other=0))
        tl.store(rows_ptr + req, tl.where(req < num_stored, row, padding_row))
        has_root = tl.load(num_sampled_ptr + req, mask=is_req, other=0) > 0
        own_budget = tl.minimum(tl.load(stored_node_limit_ptr + row, mask=is_req, other=0), node_budget)
        tl.store(node_budget_ptr + req, tl.where(has_root, own_budget, 0))
        tl.store(beam_limit_ptr + req, tl.load(stored_beam_limit_ptr + row, mask=is_req, other=1))


@triton.jit
def _store_kernel(
    tokens_ptr,  # [B, N]
    parents_ptr,  # [B, N]
    depths_ptr,  # [B, N]
    num_nodes_ptr,  # [B]
    rows_ptr,  # [B]
    node_budget_ptr,  # [B]
    stored_tokens_ptr,  # [P, N]
    stored_parents_ptr,  # [P, N]
    stored_depths_ptr,  # [P, N]
    stored_ancestors_ptr,  # [P, N, N] uint8
    stored_num_nodes_ptr,  # [P]
    draft_tokens_ptr,  # [B, N]
    capacity,
    BLOCK_N: tl.constexpr,
    NODES: tl.constexpr,
):
    req = tl.program_id(0).to(tl.int64)
    node_C = tl.program_id(1) * NODES + tl.arange(0, NODES)
    exists_C = node_C < capacity
    row = tl.load(rows_ptr + req)
    num_nodes = tl.minimum(tl.load(num_nodes_ptr + req).to(tl.int32), capacity)
    from_C = req * capacity + node_C
    to_C = row * capacity + node_C
    token_C = tl.load(tokens_ptr + from_C, mask=exists_C, other=0)
    tl.store(draft_tokens_ptr + from_C, token_C, mask=exists_C)
    tl.store(stored_tokens_ptr + to_C, token_C, mask=exists_C)
    tl.store(stored_parents_ptr + to_C, tl.load(parents_ptr + from_C, mask=exists_C, other=-1), mask=exists_C)
    tl.store(stored_depths_ptr + to_C, tl.load(depths_ptr + from_C, mask=exists_C, other=0), mask=exists_C)
    if tl.program_id(1) == 0:
        tl.store(stored_num_nodes_ptr + row, tl.minimum(num_nodes, tl.load(node_budget_ptr + req)))

    column_N = tl.arange(0, BLOCK_N)
    sees_CN = climb(parents_ptr + req * capacity, 1, node_C, column_N, num_nodes, capacity)
    cell_CN = row * capacity * capacity + node_C[:, None] * capacity + column_N[None, :]
    inside_CN = exists_C[:, None] & (column_N < capacity)[None, :]
    tl.store(stored_ancestors_ptr + cell_CN, sees_CN.to(tl.uint8), mask=inside_CN)


def variants() -> list[Variant]:
    """Compiled ahead of time in the tests: contexts with and without an accepted path; small and full trees."""
    return [
        _gather_variant("gather_bf16", "*bf16", {"HAS_LEAF": True, "BLOCK_H": 1024}),
        _gather_variant("gather_fp32", "*fp32", {"HAS_LEAF": False, "BLOCK_H": 1024}),
        _store_variant("store_n16", 16),
        _store_variant("store_n128", 128),
    ]


def _gather_variant(name: str, hidden: str, constants: dict[str, int | bool]) -> Variant:
    types = {argument: "*i64" if argument.endswith("_ptr") else "i32" for argument in _gather_kernel.arg_names}
    types |= {"hidden_ptr": hidden, "context_ptr": hidden, "num_sampled_ptr": "*i32"}
    types = {argument: kind for argument, kind in types.items() if argument not in constants}
    return Variant(name, _gather_kernel, types, constants)


def _store_variant(name: str, capacity: int) -> Variant:
    types = {argument: "*i64" for argument in _store_kernel.arg_names if argument.endswith("_ptr")}
    types |= {"stored_ancestors_ptr": "*u8", "capacity": "i32"}
    return Variant(name, _store_kernel, types, {"BLOCK_N": capacity, "NODES": _NODES}, num_warps=1)
