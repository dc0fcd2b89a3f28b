# SPDX-License-Identifier: Apache-2.0
# mypy: disable-error-code="no-untyped-def"
"""The walk through a draft tree in one launch, one program per request."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from redrafter_vllm.ops.tree_verify.reference import Walk
from redrafter_vllm.ops.variant import Variant


def tree_verify(
    sampled: Tensor,  # [R]
    first_row: Tensor,  # [B]
    tokens: Tensor,  # [B, N]
    parents: Tensor,  # [B, N]
    valid: Tensor,  # [B, N] bool
    max_depth: int,
) -> Walk:
    """See `reference.tree_verify`. Of two equal valid siblings the earlier one is taken."""
    num_reqs, num_nodes = tokens.shape
    device = sampled.device
    walk = Walk(
        emitted=torch.empty(num_reqs, 1 + num_nodes, dtype=sampled.dtype, device=device),
        path=torch.empty(num_reqs, max_depth, dtype=torch.int64, device=device),
        num_emitted=torch.empty(num_reqs, dtype=torch.int32, device=device),
        leaf=torch.empty(num_reqs, dtype=torch.int64, device=device),
    )
    tree_verify_into(walk, sampled, first_row, tokens, parents, valid)
    return walk


def tree_verify_into(
    out: Walk, sampled: Tensor, first_row: Tensor, tokens: Tensor, parents: Tensor, valid: Tensor
) -> None:
    """As `tree_verify`, into contiguous buffers; every element is written. `max_depth` is the width of `out.path`."""
    num_reqs, num_nodes = tokens.shape
    if num_reqs == 0:
        return
    valid = valid.view(torch.uint8)
    strides = [x.stride(0) for x in (tokens, parents, valid)]
    if any(x.stride(-1) != 1 and x.shape[-1] > 1 for x in (sampled, first_row, tokens, parents, valid)):
        raise ValueError("sampled, first_row, tokens, parents and valid must be contiguous in their last dimension")
    max_depth = out.path.shape[1]
    _walk_kernel[(num_reqs,)](
        sampled,
        first_row,
        tokens,
        parents,
        valid,
        *strides,
        *out,
        num_nodes,
        max_depth,
        BLOCK_M=triton.next_power_of_2(1 + num_nodes),
        BLOCK_T=triton.next_power_of_2(max(max_depth, 1)),
        num_warps=1,
    )


@triton.jit
def _walk_kernel(
    sampled_ptr,  # [R]
    first_row_ptr,  # [B]
    tokens_ptr,  # [B, N]
    parents_ptr,  # [B, N]
    valid_ptr,  # [B, N] uint8
    tokens_stride,
    parents_stride,
    valid_stride,
    emitted_ptr,  # [B, 1 + N]
    path_ptr,  # [B, T]
    num_emitted_ptr,  # [B] int32
    leaf_ptr,  # [B]
    num_nodes,
    max_depth,
    BLOCK_M: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    req = tl.program_id(0).to(tl.int64)
    sampled_ptr += tl.load(first_row_ptr + req)
    node_M = tl.arange(0, BLOCK_M)
    exists_M = node_M < num_nodes
    valid_M = tl.load(valid_ptr + req * valid_stride + node_M, mask=exists_M, other=0)
    token_M = tl.load(tokens_ptr + req * tokens_stride + node_M, mask=exists_M, other=0).to(tl.int64)
    parent_M = tl.load(parents_ptr + req * parents_stride + node_M, mask=exists_M, other=-1).to(tl.int32)
    # An invalid node is no node's child.
    parent_M = tl.where(exists_M & (valid_M != 0), parent_M, -2)

    slot_M = tl.arange(0, BLOCK_M)
    depth_T = tl.arange(0, BLOCK_T)
    token = tl.load(sampled_ptr).to(tl.int64)
    emitted_M = tl.where(slot_M == 0, token, 0)
    path_T = tl.full((BLOCK_T,), -1, tl.int64)
    depth = 0
    leaf = 0
    node = tl.min(tl.where((parent_M == -1) & (token_M == token), node_M, BLOCK_M))
    while (node < BLOCK_M) & (depth < max_depth):
        leaf = node + 1
        token = tl.load(sampled_ptr + leaf).to(tl.int64)
        path_T = tl.where(depth_T == depth, node, path_T)
        depth += 1
        emitted_M = tl.where(slot_M == depth, token, emitted_M)
        node = tl.min(tl.where((parent_M == node) & (token_M == token), node_M, BLOCK_M))

    tl.store(emitted_ptr + req * (num_nodes + 1) + slot_M, emitted_M, mask=slot_M <= num_nodes)
    tl.store(path_ptr + req * max_depth + depth_T, path_T, mask=depth_T < max_depth)
    tl.store(num_emitted_ptr + req, depth + 1)
    tl.store(leaf_ptr + req, leaf)


def variants() -> list[Variant]:
    """Compiled ahead of time in the tests: the tokens' types that vLLM has, small and full trees."""
    return [_variant("int64_n10", "*i64", 16, 8), _variant("int32_n128", "*i32", 256, 32)]


def _variant(name: str, sampled: str, block_m: int, block_t: int) -> Variant:
    strides = ("tokens_stride", "parents_stride", "valid_stride", "num_nodes", "max_depth")
    types: dict[str, Any] = {
        "sampled_ptr": sampled,
        "first_row_ptr": "*i64",
        "tokens_ptr": "*i64",
        "parents_ptr": "*i64",
        "valid_ptr": "*u8",
        "emitted_ptr": sampled,
        "path_ptr": "*i64",
        "num_emitted_ptr": "*i32",
        "leaf_ptr": "*i64",
    } | dict.fromkeys(strides, "i32")
    return Variant(name, _walk_kernel, types, {"BLOCK_M": block_m, "BLOCK_T": block_t}, num_warps=1)
