# SPDX-License-Identifier: Apache-2.0
# mypy: disable-error-code="no-untyped-def"
"""Prefix trees in one launch, one program per request, and their ancestor masks in another."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from redrafter_vllm.ops.variant import Variant

_ROWS = 16  # of an ancestor mask, one program


class TreeArrays(NamedTuple):
    """The results of `prefix_tree`, in its order; contiguous."""

    tokens: Tensor  # [B, N]
    parents: Tensor  # [B, N] int64
    depths: Tensor  # [B, N] int64
    scores: Tensor  # [B, N] fp32
    beams: Tensor  # [B, N] int64
    num_nodes: Tensor  # [B] int64


def prefix_tree(
    tokens: Tensor, parents: Tensor, scores: Tensor, max_nodes: int, beam_limit: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See `reference.prefix_tree`. Tensors that are not contiguous are copied."""
    batch, device = tokens.shape[0], tokens.device
    shape = (batch, max_nodes)
    out = TreeArrays(
        tokens=torch.empty(shape, dtype=tokens.dtype, device=device),
        parents=torch.empty(shape, dtype=torch.int64, device=device),
        depths=torch.empty(shape, dtype=torch.int64, device=device),
        scores=torch.empty(shape, dtype=torch.float32, device=device),
        beams=torch.empty(shape, dtype=torch.int64, device=device),
        num_nodes=torch.empty(batch, dtype=torch.int64, device=device),
    )
    prefix_tree_into(out, tokens, parents, scores, beam_limit)
    return out


def prefix_tree_into(
    out: TreeArrays, tokens: Tensor, parents: Tensor, scores: Tensor, beam_limit: Tensor | None = None
) -> None:
    """As `prefix_tree`, into given buffers, of which every element is written; `max_nodes` is their width."""
    batch, length, width = tokens.shape
    if batch == 0:
        return
    # Written and read by the same program only.
    keys = torch.empty(batch, length * width, dtype=torch.float32, device=tokens.device)
    places = torch.empty(batch, length * width, dtype=torch.int32, device=tokens.device)
    block_w, chunk, num_warps = _sizes(width, length)
    _build_kernel[(batch,)](
        tokens.contiguous(),
        parents.contiguous(),
        scores.contiguous(),
        beam_limit,
        keys,
        places,
        *out,
        width,
        length,
        out.tokens.shape[1],
        BLOCK_W=block_w,
        CHUNK=chunk,
        num_warps=num_warps,
        num_stages=1,
    )


def ancestor_mask(parents: Tensor, num_nodes: Tensor) -> Tensor:
    """See `reference.ancestor_mask`."""
    batch, capacity = parents.shape
    mask = torch.empty(batch, capacity, capacity, dtype=torch.bool, device=parents.device)
    ancestor_mask_into(mask, parents, num_nodes)
    return mask


def ancestor_mask_into(out: Tensor, parents: Tensor, num_nodes: Tensor) -> None:
    """As `ancestor_mask`, into a contiguous buffer [B, N, N], of which every element is written."""
    batch, capacity = parents.shape
    if batch == 0 or capacity == 0:
        return
    _ancestor_kernel[(batch, triton.cdiv(capacity, _ROWS))](
        parents,
        num_nodes,
        *parents.stride(),
        num_nodes.stride(0),
        out.view(torch.uint8),
        capacity,
        BLOCK_R=_ROWS,
        BLOCK_N=triton.next_power_of_2(capacity),
        num_warps=1,
    )


def _sizes(width: int, length: int) -> tuple[int, int, int]:
    """Beams and prefixes that are compared at once, and the warps for them."""
    block_w = triton.next_power_of_2(width)
    chunk = min(max(triton.next_power_of_2(width * length), 16), 64)
    return block_w, chunk, 8 if block_w > 64 else 4 if block_w > 16 or chunk > 32 else 1


@triton.jit
def _build_kernel(
    tokens_ptr,  # [B, T, W]
    parents_ptr,  # [B, T, W] int64
    scores_ptr,  # [B, T, W]
    beam_limit_ptr,  # [B] int64; None: all beams count
    keys_ptr,  # [B, T * W] fp32, what nodes are ranked by: minus infinity for beams that are no nodes
    places_ptr,  # [B, T * W] int32, first whether each beam is a node, then its rank
    node_tokens_ptr,  # [B, N]
    node_parents_ptr,  # [B, N] int64
    depths_ptr,  # [B, N] int64
    node_scores_ptr,  # [B, N] fp32
    node_beams_ptr,  # [B, N] int64
    num_nodes_ptr,  # [B] int64
    width,
    length,
    max_nodes,
    BLOCK_W: tl.constexpr,
    CHUNK: tl.constexpr,
):
    req = tl.program_id(0).to(tl.int64)
    num_flat = width * length
    tokens_ptr += req * num_flat
    parents_ptr += req * num_flat
    scores_ptr += req * num_flat
    keys_ptr += req * num_flat
    places_ptr += req * num_flat
    node_tokens_ptr += req * max_nodes
    node_parents_ptr += req * max_nodes
    depths_ptr += req * max_nodes
    node_scores_ptr += req * max_nodes
    node_beams_ptr += req * max_nodes

    beam_W = tl.arange(0, BLOCK_W)
    exists_W = beam_W < width
    if beam_limit_ptr is not None:
        # From the last step to the first: its best beams and their prefixes are nodes, or else all beams.
        limit = tl.load(beam_limit_ptr + req)
        chosen_W = exists_W & (beam_W < limit)
        for back in range(length):
            flat_W = (length - 1 - back) * width + beam_W
            tl.store(places_ptr + flat_W, (chosen_W | (limit >= width)).to(tl.int32), mask=exists_W)
            parent_W = tl.load(parents_ptr + flat_W, mask=exists_W, other=0)
            child_WW = (parent_W[None, :] == beam_W[:, None]) & chosen_W[None, :]
            chosen_W = tl.max(child_WW.to(tl.int32), axis=1) > 0
        tl.debug_barrier()

    # From the first step to the last: a score is lowered where it is above its parent's or undefined.
    falling_W = tl.full((BLOCK_W,), float("inf"), tl.float32)
    lowest = -3.4028234663852886e38
    num_kept = 0
    for step in range(length):
        flat_W = step * width + beam_W
        parent_W = tl.load(parents_ptr + flat_W, mask=exists_W, other=0)
        above_WW = tl.where(parent_W[:, None] == beam_W[None, :], falling_W[None, :], float("-inf"))
        above_W = tl.max(above_WW, axis=1)
        if step == 0:
            above_W = tl.full((BLOCK_W,), 3.4028234663852886e38, tl.float32)
        score_W = tl.load(scores_ptr + flat_W, mask=exists_W, other=0.0).to(tl.float32)
        defined_W = tl.where(score_W == score_W, score_W, lowest)
        falling_W = tl.minimum(defined_W, above_W)
        is_node_W = exists_W & (falling_W >= lowest)
        if beam_limit_ptr is not None:
            is_node_W &= tl.load(places_ptr + flat_W, mask=exists_W, other=0) > 0
        tl.store(keys_ptr + flat_W, tl.where(is_node_W, falling_W, float("-inf")), mask=exists_W)
        num_kept += tl.sum(is_node_W.to(tl.int32))

    tl.debug_barrier()
    for start in range(0, num_flat, CHUNK):
        flat_M = start + tl.arange(0, CHUNK)
        key_M = tl.load(keys_ptr + flat_M, mask=flat_M < num_flat, other=float("-inf"))
        place_M = tl.zeros((CHUNK,), tl.int32)
        for other_start in range(0, num_flat, CHUNK):
            other_M = other_start + tl.arange(0, CHUNK)
            other_key_M = tl.load(keys_ptr + other_M, mask=other_M < num_flat, other=float("-inf"))
            tie_MM = (other_key_M[None, :] == key_M[:, None]) & (other_M[None, :] < flat_M[:, None])
            before_MM = (other_key_M[None, :] > key_M[:, None]) | tie_MM
            place_M += tl.sum(before_MM.to(tl.int32), axis=1)
        tl.store(places_ptr + flat_M, place_M, mask=flat_M < num_flat)

    tl.debug_barrier()
    for start in range(0, num_flat, CHUNK):
        flat_M = start + tl.arange(0, CHUNK)
        key_M = tl.load(keys_ptr + flat_M, mask=flat_M < num_flat, other=float("-inf"))
        place_M = tl.load(places_ptr + flat_M, mask=flat_M < num_flat, other=max_nodes)
        kept_M = (key_M >= lowest) & (place_M < max_nodes)
        step_M = flat_M // width
        below_M = kept_M & (step_M > 0)
        parent_M = tl.load(parents_ptr + flat_M, mask=below_M, other=0)
        parent_M = tl.load(places_ptr + (step_M - 1) * width + parent_M, mask=below_M, other=-1)
        tl.store(node_tokens_ptr + place_M, tl.load(tokens_ptr + flat_M, mask=kept_M, other=0), mask=kept_M)
        tl.store(node_parents_ptr + place_M, parent_M, mask=kept_M)
        tl.store(depths_ptr + place_M, step_M + 1, mask=kept_M)
        tl.store(node_scores_ptr + place_M, key_M, mask=kept_M)
        tl.store(node_beams_ptr + place_M, flat_M, mask=kept_M)

    num_nodes = tl.minimum(num_kept, max_nodes)
    for start in range(0, max_nodes, CHUNK):
        slot_N = start + tl.arange(0, CHUNK)
        padding_N = (slot_N >= num_nodes) & (slot_N < max_nodes)
        tl.store(node_tokens_ptr + slot_N, 0, mask=padding_N)
        tl.store(node_parents_ptr + slot_N, -1, mask=padding_N)
        tl.store(depths_ptr + slot_N, 0, mask=padding_N)
        tl.store(node_scores_ptr + slot_N, float("-inf"), mask=padding_N)
        tl.store(node_beams_ptr + slot_N, 0, mask=padding_N)
    tl.store(num_nodes_ptr + req, num_nodes)


@triton.jit
def climb(parents_ptr, node_stride, node_C, column_N, num_nodes, capacity):
    """[C, N]: whether the column is the node or one of its ancestors; False for slots from `num_nodes` on."""
    # All nodes climb together, each to the root.
    here_C = tl.where(node_C < num_nodes, node_C, -1)
    seen_CN = here_C[:, None] == column_N[None, :]
    climbed = 0
    while (tl.max(here_C) >= 0) & (climbed < capacity):
        here_C = tl.load(parents_ptr + here_C * node_stride, mask=here_C >= 0, other=-1).to(tl.int32)
        here_C = tl.where(here_C < num_nodes, here_C, -1)
        seen_CN = seen_CN | (here_C[:, None] == column_N[None, :])
        climbed += 1
    return seen_CN


@triton.jit
def _ancestor_kernel(
    parents_ptr,  # [B, N]
    num_nodes_ptr,  # [B]
    parents_req_stride,
    parents_node_stride,
    num_nodes_stride,
    mask_ptr,  # [B, N, N] uint8
    capacity,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    req = tl.program_id(0).to(tl.int64)
    parents_ptr += req * parents_req_stride
    num_nodes = tl.minimum(tl.load(num_nodes_ptr + req * num_nodes_stride).to(tl.int32), capacity)
    row_R = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    column_N = tl.arange(0, BLOCK_N)
    seen_RN = climb(parents_ptr, parents_node_stride, row_R, column_N, num_nodes, capacity)
    offset_RN = req * capacity * capacity + row_R[:, None] * capacity + column_N[None, :]
    tl.store(
        mask_ptr + offset_RN, seen_RN.to(tl.uint8), mask=(row_R < capacity)[:, None] & (column_N < capacity)[None, :]
    )


def variants() -> list[Variant]:
    """Compiled ahead of time in the tests: few and many beams; masks of 16 and 128 nodes."""
    sizes = [(5, 5), (4, 4), (10, 10), (64, 8)]
    beams = [_build_variant(f"w{width}_t{length}", *_sizes(width, length)) for width, length in sizes]
    return [*beams, _ancestor_variant("mask_n16", 16), _ancestor_variant("mask_n128", 128)]


def _build_variant(name: str, block_w: int, chunk: int, num_warps: int) -> Variant:
    types = {argument: "*i64" for argument in _build_kernel.arg_names if argument.endswith("_ptr")}
    types |= dict.fromkeys(("scores_ptr", "keys_ptr", "node_scores_ptr"), "*fp32") | {"places_ptr": "*i32"}
    types |= dict.fromkeys(("width", "length", "max_nodes"), "i32")
    return Variant(name, _build_kernel, types, {"BLOCK_W": block_w, "CHUNK": chunk}, num_warps, 1)


def _ancestor_variant(name: str, capacity: int) -> Variant:
    types = {
        "parents_ptr": "*i64",
        "num_nodes_ptr": "*i64",
        "mask_ptr": "*u8",
        "parents_req_stride": "i32",
        "capacity": "i32",
    }
    constants = {"parents_node_stride": 1, "num_nodes_stride": 1, "BLOCK_R": _ROWS, "BLOCK_N": capacity}
    return Variant(name, _ancestor_kernel, types, constants, num_warps=1)
