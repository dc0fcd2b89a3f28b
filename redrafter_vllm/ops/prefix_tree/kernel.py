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
    log_probs: Tensor  # [B, N] fp32
    num_nodes: Tensor  # [B] int64


def prefix_tree(
    tokens: Tensor, token_log_probs: Tensor, max_nodes: int, beam_limit: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See `reference.prefix_tree`. Sums are formed in fp64 and rounded at each step, as torch does on a CPU."""
    batch, device = tokens.shape[0], tokens.device
    shape = (batch, max_nodes)
    out = TreeArrays(
        tokens=torch.empty(shape, dtype=tokens.dtype, device=device),
        parents=torch.empty(shape, dtype=torch.int64, device=device),
        depths=torch.empty(shape, dtype=torch.int64, device=device),
        log_probs=torch.empty(shape, dtype=torch.float32, device=device),
        num_nodes=torch.empty(batch, dtype=torch.int64, device=device),
    )
    prefix_tree_into(out, tokens, token_log_probs, beam_limit)
    return out


def prefix_tree_into(
    out: TreeArrays, tokens: Tensor, token_log_probs: Tensor, beam_limit: Tensor | None = None
) -> None:
    """As `prefix_tree`, into given buffers, of which every element is written; `max_nodes` is their width."""
    batch, width, length = tokens.shape
    if batch == 0:
        return
    # Written and read by the same program only.
    sums = torch.empty(batch, length * width, dtype=torch.float32, device=tokens.device)
    owner_and_place = torch.empty(2, batch, length * width, dtype=torch.int32, device=tokens.device)
    block_w, chunk, num_warps = _sizes(width, length)
    _build_kernel[(batch,)](
        tokens,
        token_log_probs,
        *tokens.stride(),
        *token_log_probs.stride(),
        beam_limit,
        sums,
        owner_and_place[0],
        owner_and_place[1],
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
def _rank_key(sums_ptr, owner_ptr, flat_M, num_flat, width):
    """A prefix's sum, at least the lowest finite number; minus infinity for copies and beyond the last prefix."""
    inside_M = flat_M < num_flat
    sums_M = tl.load(sums_ptr + flat_M, mask=inside_M, other=0.0)
    owner_M = tl.load(owner_ptr + flat_M, mask=inside_M, other=-1)
    lowest = -3.4028234663852886e38
    return tl.where(owner_M == flat_M % width, tl.maximum(sums_M, lowest), float("-inf"))


@triton.jit
def _build_kernel(
    tokens_ptr,  # [B, W, T]
    log_probs_ptr,  # [B, W, T]
    token_req_stride,
    token_beam_stride,
    token_step_stride,
    log_prob_req_stride,
    log_prob_beam_stride,
    log_prob_step_stride,
    beam_limit_ptr,  # [B] int64; None: all beams count
    sums_ptr,  # [B, T * W] fp32, step by step: the greatest sum of the beams that share the prefix
    owner_ptr,  # [B, T * W] int32: the first of these beams
    place_ptr,  # [B, T * W] int32: the prefix's place among all, by sum
    node_tokens_ptr,  # [B, N]
    parents_ptr,  # [B, N] int64
    depths_ptr,  # [B, N] int64
    node_log_probs_ptr,  # [B, N] fp32
    num_nodes_ptr,  # [B] int64
    width,
    length,
    max_nodes,
    BLOCK_W: tl.constexpr,
    CHUNK: tl.constexpr,
):
    req = tl.program_id(0).to(tl.int64)
    num_flat = width * length
    tokens_ptr += req * token_req_stride
    log_probs_ptr += req * log_prob_req_stride
    sums_ptr += req * num_flat
    owner_ptr += req * num_flat
    place_ptr += req * num_flat
    node_tokens_ptr += req * max_nodes
    parents_ptr += req * max_nodes
    depths_ptr += req * max_nodes
    node_log_probs_ptr += req * max_nodes

    beam_W = tl.arange(0, BLOCK_W)
    exists_W = beam_W < width
    agree_WW = exists_W[:, None] & exists_W[None, :]
    # A copy of the first beam adds no nodes.
    source_W = beam_W
    if beam_limit_ptr is not None:
        source_W = tl.where(beam_W < tl.load(beam_limit_ptr + req), beam_W, 0)
    sum_W = tl.zeros((BLOCK_W,), tl.float64)
    min_W = tl.full((BLOCK_W,), float("inf"), tl.float32)
    num_prefixes = 0
    greatest = 3.4028234663852886e38
    for step in range(length):
        token_W = tl.load(tokens_ptr + source_W * token_beam_stride + step * token_step_stride, mask=exists_W, other=0)
        log_prob_W = tl.load(
            log_probs_ptr + source_W * log_prob_beam_stride + step * log_prob_step_stride, mask=exists_W, other=0.0
        )
        agree_WW = agree_WW & (token_W[:, None] == token_W[None, :])
        sum_W += log_prob_W.to(tl.float32).to(tl.float64)
        rounded_W = sum_W.to(tl.float32)
        finite_W = tl.minimum(tl.maximum(rounded_W, -greatest), greatest)
        min_W = tl.minimum(min_W, tl.where(rounded_W == rounded_W, finite_W, float("-inf")))
        owner_W = tl.min(tl.where(agree_WW, beam_W[None, :], BLOCK_W), axis=1)
        shared_W = tl.max(tl.where(agree_WW, min_W[None, :], float("-inf")), axis=1)
        tl.store(sums_ptr + step * width + beam_W, shared_W, mask=exists_W)
        tl.store(owner_ptr + step * width + beam_W, owner_W, mask=exists_W)
        num_prefixes += tl.sum((owner_W == beam_W).to(tl.int32))

    tl.debug_barrier()
    for start in range(0, num_flat, CHUNK):
        flat_M = start + tl.arange(0, CHUNK)
        key_M = _rank_key(sums_ptr, owner_ptr, flat_M, num_flat, width)
        place_M = tl.zeros((CHUNK,), tl.int32)
        for other_start in range(0, num_flat, CHUNK):
            other_M = other_start + tl.arange(0, CHUNK)
            other_key_M = _rank_key(sums_ptr, owner_ptr, other_M, num_flat, width)
            tie_MM = (other_key_M[None, :] == key_M[:, None]) & (other_M[None, :] < flat_M[:, None])
            before_MM = (other_key_M[None, :] > key_M[:, None]) | tie_MM
            place_M += tl.sum(before_MM.to(tl.int32), axis=1)
        tl.store(place_ptr + flat_M, place_M, mask=flat_M < num_flat)

    tl.debug_barrier()
    for start in range(0, num_flat, CHUNK):
        flat_M = start + tl.arange(0, CHUNK)
        inside_M = flat_M < num_flat
        step_M = flat_M // width
        beam_M = flat_M % width
        place_M = tl.load(place_ptr + flat_M, mask=inside_M, other=max_nodes)
        owner_M = tl.load(owner_ptr + flat_M, mask=inside_M, other=-1)
        kept_M = (owner_M == beam_M) & (place_M < max_nodes)
        below_M = kept_M & (step_M > 0)
        parent_beam_M = tl.load(owner_ptr + flat_M - width, mask=below_M, other=0)
        parent_M = tl.load(place_ptr + (step_M - 1) * width + parent_beam_M, mask=below_M, other=-1)
        token_M = tl.load(tokens_ptr + beam_M * token_beam_stride + step_M * token_step_stride, mask=kept_M, other=0)
        sums_M = tl.load(sums_ptr + flat_M, mask=kept_M, other=0.0)
        tl.store(node_tokens_ptr + place_M, token_M, mask=kept_M)
        tl.store(parents_ptr + place_M, parent_M, mask=kept_M)
        tl.store(depths_ptr + place_M, step_M + 1, mask=kept_M)
        tl.store(node_log_probs_ptr + place_M, sums_M, mask=kept_M)

    num_nodes = tl.minimum(num_prefixes, max_nodes)
    for start in range(0, max_nodes, CHUNK):
        slot_N = start + tl.arange(0, CHUNK)
        padding_N = (slot_N >= num_nodes) & (slot_N < max_nodes)
        tl.store(node_tokens_ptr + slot_N, 0, mask=padding_N)
        tl.store(parents_ptr + slot_N, -1, mask=padding_N)
        tl.store(depths_ptr + slot_N, 0, mask=padding_N)
        tl.store(node_log_probs_ptr + slot_N, float("-inf"), mask=padding_N)
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
    counts = ("width", "length", "max_nodes")
    strides = ("token_req_stride", "token_beam_stride", "log_prob_req_stride", "log_prob_beam_stride")
    types = {
        "tokens_ptr": "*i64",
        "log_probs_ptr": "*fp32",
        "beam_limit_ptr": "*i64",
        "sums_ptr": "*fp32",
        "owner_ptr": "*i32",
        "place_ptr": "*i32",
        "node_tokens_ptr": "*i64",
        "parents_ptr": "*i64",
        "depths_ptr": "*i64",
        "node_log_probs_ptr": "*fp32",
        "num_nodes_ptr": "*i64",
    } | dict.fromkeys((*counts, *strides), "i32")
    constants = {"token_step_stride": 1, "log_prob_step_stride": 1, "BLOCK_W": block_w, "CHUNK": chunk}
    unaligned = frozenset({"place_ptr"})
    return Variant(name, _build_kernel, types, constants, num_warps, 1, unaligned)


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
