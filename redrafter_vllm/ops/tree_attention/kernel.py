# SPDX-License-Identifier: Apache-2.0
"""Tree attention in Triton, in two launches that read each key once per block of query rows.

`attend_context` splits the context among programs, each of which leaves its own weighted mean and log-sum.
`attend_nodes` attends to the query's own keys under the ancestor mask and merges these parts, or those of another
kernel for the context. The query heads that share a key head stand as rows of one matrix.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from redrafter_vllm.ops.tree_attention.reference import TreeBatch
from redrafter_vllm.ops.variant import Variant

MAX_HEAD_SIZE = 256
_LOG2_E = tl.constexpr(1.4426950408889634)
# Below all scores, but finite, so that differences from it are numbers.
_LOWEST = tl.constexpr(-1.0e30)
# The interpreter multiplies the bit patterns of bf16.
_INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@dataclass(frozen=True)
class Tiling:
    """How a launch is cut: query rows and keys of one tile, warps of one program."""

    rows: int
    keys: int
    num_warps: int
    num_stages: int = 2

    @classmethod
    def choose(cls, dtype: torch.dtype, head_size: int, max_rows: int) -> "Tiling":
        """A tiling without spills for any query length; `max_rows` is query length times heads per key head."""
        padded, rows = padded_head_size(head_size), max(16, triton.next_power_of_2(max_rows))
        if dtype == torch.float32:
            return cls(16, 16, 4 if padded <= 128 else 8, 1)
        if padded > 128:
            return cls(min(rows, 32), 32, 4 if rows <= 16 else 8)
        rows = min(rows, 128)
        return cls(rows, 64 if rows <= 32 else 32, 4 if rows <= 64 else 8)


def padded_head_size(head_size: int) -> int:
    """The width of a tile: a power of two, as Triton wants, and enough for a matrix product."""
    return max(16, triton.next_power_of_2(head_size))


def tree_attention(
    query: Tensor,  # [tokens, heads, head_size]
    kv_cache: Tensor,  # [num_blocks, kv_heads, block_size, 2 * head_size]
    batch: TreeBatch,
    scale: float,
    k_scale: Tensor | None = None,  # scalar fp32
    v_scale: Tensor | None = None,  # scalar fp32
    out: Tensor | None = None,  # [tokens, heads, head_size]
    num_splits: int | None = None,
) -> Tensor:  # [tokens, heads, head_size]
    """As the reference, without reading a length on the host; `num_splits` parts of the context go side by side."""
    parts = attend_context(query, kv_cache, batch, scale, k_scale, v_scale, num_splits)
    return attend_nodes(query, kv_cache, batch, *parts, scale, k_scale, v_scale, out)


def attend_context(
    query: Tensor,
    kv_cache: Tensor,
    batch: TreeBatch,
    scale: float,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    num_splits: int | None = None,
) -> tuple[Tensor, Tensor]:  # [S, tokens, heads, head_size] fp32, [S, heads, tokens] fp32
    """Attention to what stood in the cache before the query, in S parts with their natural log-sums.

    An empty part's log-sum is minus infinity and its mean is not written.
    """
    tiling, arguments = _arguments(query, kv_cache, batch, scale, k_scale, v_scale)
    num_tokens, num_heads, _ = query.shape
    blocks = _row_blocks(query, kv_cache, batch, tiling)
    num_requests = batch.seq_lens.shape[0]
    if num_splits is None:
        longest = batch.block_table.shape[1] * kv_cache.shape[2]
        num_splits = choose_splits(query.device, blocks * num_requests, longest)
    context = torch.empty(num_splits, *query.shape, dtype=torch.float32, device=query.device)
    log_sum = torch.empty(num_splits, num_heads, num_tokens, dtype=torch.float32, device=query.device)
    if num_tokens and num_requests:
        _context_kernel[(blocks, num_requests, num_splits)](context, log_sum, num_tokens, **arguments)
    return context, log_sum


def attend_nodes(
    query: Tensor,
    kv_cache: Tensor,
    batch: TreeBatch,
    context: Tensor,  # [S, tokens, heads, head_size], any float type
    context_log_sum: Tensor,  # [S, heads, tokens] fp32
    scale: float,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Attention of the query to itself, merged with that to S parts of the context, as the reference."""
    tiling, arguments = _arguments(query, kv_cache, batch, scale, k_scale, v_scale)
    out = torch.empty_like(query) if out is None else out
    if out.stride(2) != 1 or context.stride(3) != 1 or context_log_sum.stride(2) != 1:
        raise ValueError("the last dimension of out, context and context_log_sum must be contiguous")
    num_requests, ancestors = batch.seq_lens.shape[0], batch.ancestors
    if query.shape[0] and num_requests:
        _nodes_kernel[(_row_blocks(query, kv_cache, batch, tiling), num_requests)](
            out, out.stride(0), out.stride(1),
            context, context.stride(0), context.stride(1), context.stride(2),
            context_log_sum, context_log_sum.stride(0), context_log_sum.stride(1), context.shape[0],
            ancestors.view(torch.uint8), ancestors.stride(0), ancestors.stride(1), batch.num_drafts,
            **arguments,
        )  # fmt: skip
    return out


def choose_splits(device: torch.device, num_programs: int, longest: int) -> int:
    """Parts of the context that give each multiprocessor about two programs, of at least 128 keys each."""
    if device.type != "cuda":
        return 1
    wanted = triton.cdiv(2 * torch.cuda.get_device_properties(device).multi_processor_count, max(num_programs, 1))
    return max(1, min(wanted, longest // 128, 64))


def _row_blocks(query: Tensor, kv_cache: Tensor, batch: TreeBatch, tiling: Tiling) -> int:
    """Blocks of query rows over all key heads, of a request with the longest query."""
    num_kv_heads = kv_cache.shape[1]
    return triton.cdiv(batch.max_query_len * query.shape[1] // num_kv_heads, tiling.rows) * num_kv_heads


def _arguments(
    query: Tensor, kv_cache: Tensor, batch: TreeBatch, scale: float, k_scale: Tensor | None, v_scale: Tensor | None
) -> tuple[Tiling, dict[str, Any]]:
    """What both kernels take."""
    (_, num_heads, head_size), (_, num_kv_heads, block_size, entry_size) = query.shape, kv_cache.shape
    if entry_size != 2 * head_size or num_heads % num_kv_heads or head_size > MAX_HEAD_SIZE:
        raise ValueError(
            f"query {list(query.shape)} and cache {list(kv_cache.shape)} do not fit: the cache holds keys and values "
            f"side by side, and heads of up to {MAX_HEAD_SIZE}"
        )
    is_fp8 = kv_cache.dtype in (torch.float8_e4m3fn, torch.uint8)
    if not is_fp8 and kv_cache.dtype != query.dtype:
        raise ValueError(f"a cache of {kv_cache.dtype} needs a query of the same type, not {query.dtype}")
    if query.stride(2) != 1 or kv_cache.stride(3) != 1:
        raise ValueError("the last dimension of query and kv_cache must be contiguous")
    group = num_heads // num_kv_heads
    tiling = Tiling.choose(query.dtype, head_size, batch.max_query_len * group)
    return tiling, {
        "query_ptr": query,
        "query_token_stride": query.stride(0),
        "query_head_stride": query.stride(1),
        "cache_ptr": kv_cache.view(torch.uint8) if is_fp8 else kv_cache,
        "cache_block_stride": kv_cache.stride(0),
        "cache_head_stride": kv_cache.stride(1),
        "cache_slot_stride": kv_cache.stride(2),
        "table_ptr": batch.block_table,
        "table_stride": batch.block_table.stride(0),
        "query_start_ptr": batch.query_start_loc,
        "seq_lens_ptr": batch.seq_lens,
        "k_scale_ptr": k_scale,
        "v_scale_ptr": v_scale,
        "scale": scale,
        "num_kv_heads": num_kv_heads,
        "GROUP": group,
        "BLOCK_SIZE": block_size,
        "HEAD": head_size,
        "HEAD_PAD": padded_head_size(head_size),
        "FP8": is_fp8,
        "ROWS": tiling.rows,
        "KEYS": tiling.keys,
        "num_warps": tiling.num_warps,
        "num_stages": tiling.num_stages,
    }


@triton.jit
def _rows_of(query_start_ptr, request, num_kv_heads, GROUP: tl.constexpr, ROWS: tl.constexpr):
    """First token and length of the request's query, key head of this program, token and head of its rows."""
    start = tl.load(query_start_ptr + request)
    query_len = tl.load(query_start_ptr + request + 1) - start
    kv_head = tl.program_id(0) % num_kv_heads
    row = tl.program_id(0) // num_kv_heads * ROWS + tl.arange(0, ROWS)
    return start, query_len, kv_head, row // GROUP, kv_head * GROUP + row % GROUP


@triton.jit
def _decoded(entry, dtype: tl.constexpr, FP8: tl.constexpr):
    """Bytes as e4m3: shifted, they are fp16 of 2^-8 the value. By hand, as capability 8.0 has no such type."""
    if FP8:
        bits = ((entry & 0x80).to(tl.uint16) << 8) | ((entry & 0x7F).to(tl.uint16) << 7)
        entry = (bits.to(tl.float16, bitcast=True) * 256.0).to(dtype)
    return entry


@triton.jit
def _plus_product(sum_, left, right):
    """Sum and products in fp32."""
    if _INTERPRETED:
        left, right = left.to(tl.float32), right.to(tl.float32)
    return tl.dot(left, right, sum_, input_precision="ieee")


@triton.jit
def _absorb(
    query,  # [ROWS, HEAD_PAD]
    mean,  # [ROWS, HEAD_PAD] fp32, times `total`
    highest,  # [ROWS] fp32, of scores in base 2
    total,  # [ROWS] fp32
    visible,  # [ROWS, KEYS] or [1, KEYS]
    slot,  # [KEYS] storage position
    slot_ok,  # [KEYS]
    head_ptr,  # the cache at this key head
    cache_block_stride,
    cache_slot_stride,
    pages_ptr,
    score_scale,
    BLOCK_SIZE: tl.constexpr,
    HEAD: tl.constexpr,
    HEAD_PAD: tl.constexpr,
    FP8: tl.constexpr,
):
    """One tile of keys into the running softmax."""
    page = tl.load(pages_ptr + slot // BLOCK_SIZE, mask=slot_ok, other=0).to(tl.int64)
    place = page * cache_block_stride + (slot % BLOCK_SIZE).to(tl.int64) * cache_slot_stride
    dim = tl.arange(0, HEAD_PAD)
    entry_ptr = head_ptr + place[:, None] + dim[None, :]
    entry_ok = slot_ok[:, None] & (dim < HEAD)[None, :]
    key = _decoded(tl.load(entry_ptr, mask=entry_ok, other=0), query.dtype, FP8)
    score = tl.zeros([query.shape[0], key.shape[0]], tl.float32)
    score = _plus_product(score, query, tl.trans(key)) * score_scale
    score = tl.where(visible, score, -float("inf"))
    new_highest = tl.maximum(highest, tl.max(score, axis=1))
    weight = tl.exp2(score - new_highest[:, None])
    shrink = tl.exp2(highest - new_highest)
    total = total * shrink + tl.sum(weight, axis=1)
    value = _decoded(tl.load(entry_ptr + HEAD, mask=entry_ok, other=0), query.dtype, FP8)
    mean = _plus_product(mean * shrink[:, None], weight.to(query.dtype), value)
    return mean, new_highest, total


@triton.jit
def _context_kernel(
    context_ptr,  # [S, tokens, heads, head_size] fp32
    log_sum_ptr,  # [S, heads, tokens] fp32
    num_tokens,
    query_ptr,  # [tokens, heads, head_size]
    query_token_stride,
    query_head_stride,
    cache_ptr,  # [num_blocks, kv_heads, block_size, 2 * head_size]
    cache_block_stride,
    cache_head_stride,
    cache_slot_stride,
    table_ptr,  # [B, pages]
    table_stride,
    query_start_ptr,  # [B + 1]
    seq_lens_ptr,  # [B]
    k_scale_ptr,
    v_scale_ptr,
    scale,
    num_kv_heads,
    GROUP: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HEAD: tl.constexpr,
    HEAD_PAD: tl.constexpr,
    FP8: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
):
    request = tl.program_id(1)
    split = tl.program_id(2)
    start, query_len, kv_head, token, head = _rows_of(query_start_ptr, request, num_kv_heads, GROUP, ROWS)
    if tl.program_id(0) // num_kv_heads * ROWS >= query_len * GROUP:
        return
    row_ok = token < query_len
    query_row = (start + token).to(tl.int64)
    num_heads = num_kv_heads * GROUP
    log_sum_ptr += (split.to(tl.int64) * num_heads + head) * num_tokens + query_row

    context_len = tl.load(seq_lens_ptr + request) - query_len
    part_len = tl.cdiv(tl.cdiv(context_len, KEYS), tl.num_programs(2)) * KEYS
    first = split * part_len
    end = tl.minimum(first + part_len, context_len)
    if first >= end:
        tl.store(log_sum_ptr, tl.full([ROWS], -float("inf"), tl.float32), mask=row_ok)
        return

    dim = tl.arange(0, HEAD_PAD)
    out_ok = row_ok[:, None] & (dim < HEAD)[None, :]
    query_at = query_row * query_token_stride + head * query_head_stride
    query = tl.load(query_ptr + query_at[:, None] + dim[None, :], mask=out_ok, other=0)
    score_scale = scale * _LOG2_E
    if k_scale_ptr is not None:
        score_scale *= tl.load(k_scale_ptr)
    mean = tl.zeros([ROWS, HEAD_PAD], tl.float32)
    highest = tl.full([ROWS], _LOWEST, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    head_ptr = cache_ptr + kv_head.to(tl.int64) * cache_head_stride
    pages_ptr = table_ptr + request.to(tl.int64) * table_stride
    for tile in range(first, end, KEYS):
        slot = tile + tl.arange(0, KEYS)
        slot_ok = slot < end
        mean, highest, total = _absorb(
            query, mean, highest, total, slot_ok[None, :], slot, slot_ok, head_ptr, cache_block_stride,
            cache_slot_stride, pages_ptr, score_scale, BLOCK_SIZE, HEAD, HEAD_PAD, FP8,
        )  # fmt: skip
    mean = mean / total[:, None]
    if v_scale_ptr is not None:
        mean *= tl.load(v_scale_ptr)
    context_at = ((split.to(tl.int64) * num_tokens + query_row) * num_heads + head) * HEAD
    tl.store(context_ptr + context_at[:, None] + dim[None, :], mean, mask=out_ok)
    tl.store(log_sum_ptr, (highest + tl.log2(total)) / _LOG2_E, mask=row_ok)


@triton.jit
def _nodes_kernel(
    out_ptr,  # [tokens, heads, head_size]
    out_token_stride,
    out_head_stride,
    context_ptr,  # [S, tokens, heads, head_size]
    context_part_stride,
    context_token_stride,
    context_head_stride,
    log_sum_ptr,  # [S, heads, tokens] fp32
    log_sum_part_stride,
    log_sum_head_stride,
    num_parts,
    ancestors_ptr,  # [B, N, N] bytes
    ancestors_stride,
    ancestors_row_stride,
    num_drafts_ptr,  # [B]
    query_ptr,  # [tokens, heads, head_size]
    query_token_stride,
    query_head_stride,
    cache_ptr,  # [num_blocks, kv_heads, block_size, 2 * head_size]
    cache_block_stride,
    cache_head_stride,
    cache_slot_stride,
    table_ptr,  # [B, pages]
    table_stride,
    query_start_ptr,  # [B + 1]
    seq_lens_ptr,  # [B]
    k_scale_ptr,
    v_scale_ptr,
    scale,
    num_kv_heads,
    GROUP: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HEAD: tl.constexpr,
    HEAD_PAD: tl.constexpr,
    FP8: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
):
    request = tl.program_id(1)
    start, query_len, kv_head, token, head = _rows_of(query_start_ptr, request, num_kv_heads, GROUP, ROWS)
    first_row = tl.program_id(0) // num_kv_heads * ROWS
    if first_row >= query_len * GROUP:
        return
    row_ok = token < query_len
    query_row = (start + token).to(tl.int64)
    dim = tl.arange(0, HEAD_PAD)
    out_ok = row_ok[:, None] & (dim < HEAD)[None, :]
    query_at = query_row * query_token_stride + head * query_head_stride
    query = tl.load(query_ptr + query_at[:, None] + dim[None, :], mask=out_ok, other=0)
    score_scale = scale * _LOG2_E
    if k_scale_ptr is not None:
        score_scale *= tl.load(k_scale_ptr)

    mean = tl.zeros([ROWS, HEAD_PAD], tl.float32)
    highest = tl.full([ROWS], _LOWEST, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    context_len = tl.load(seq_lens_ptr + request) - query_len
    first_node = query_len - tl.load(num_drafts_ptr + request)
    ancestors_ptr += request.to(tl.int64) * ancestors_stride
    head_ptr = cache_ptr + kv_head.to(tl.int64) * cache_head_stride
    pages_ptr = table_ptr + request.to(tl.int64) * table_stride
    end = tl.minimum(query_len, (first_row + ROWS - 1) // GROUP + 1)
    for tile in range(0, end, KEYS):
        key = tile + tl.arange(0, KEYS)
        # A padded request may have a query but no cached tokens.
        key_ok = (key < query_len) & (context_len + key >= 0)
        visible = (key[None, :] <= token[:, None]) & key_ok[None, :]
        # Among drafts an earlier one need not be an ancestor.
        row_node = (token - first_node)[:, None]
        key_node = (key - first_node)[None, :]
        drafts = visible & row_ok[:, None] & (row_node >= 0) & (key_node >= 0)
        on_path = tl.load(ancestors_ptr + row_node * ancestors_row_stride + key_node, mask=drafts, other=0)
        visible = visible & ((on_path != 0) | ~drafts)
        mean, highest, total = _absorb(
            query, mean, highest, total, visible, context_len + key, key_ok, head_ptr, cache_block_stride,
            cache_slot_stride, pages_ptr, score_scale, BLOCK_SIZE, HEAD, HEAD_PAD, FP8,
        )  # fmt: skip
    # The context's parts carry the values' scale already.
    if v_scale_ptr is not None:
        mean *= tl.load(v_scale_ptr)

    log_sum_at = head * log_sum_head_stride + query_row
    context_at = query_row * context_token_stride + head * context_head_stride
    for _ in range(num_parts):
        log_sum = tl.load(log_sum_ptr + log_sum_at, mask=row_ok, other=-float("inf"))
        filled = tl.abs(log_sum) < float("inf")
        log_sum = tl.where(filled, log_sum * _LOG2_E, _LOWEST)
        new_highest = tl.maximum(highest, log_sum)
        weight = tl.where(filled, tl.exp2(log_sum - new_highest), 0.0)
        shrink = tl.exp2(highest - new_highest)
        part_ptr = context_ptr + context_at[:, None] + dim[None, :]
        part_mean = tl.load(part_ptr, mask=out_ok & filled[:, None], other=0).to(tl.float32)
        mean = mean * shrink[:, None] + part_mean * weight[:, None]
        total = total * shrink + weight
        highest = new_highest
        log_sum_ptr += log_sum_part_stride
        context_ptr += context_part_stride
    out_at = query_row * out_token_stride + head * out_head_stride
    mean = mean / total[:, None]
    tl.store(out_ptr + out_at[:, None] + dim[None, :], mean.to(out_ptr.dtype.element_ty), mask=out_ok)


def variants() -> list[Variant]:
    """Compiled ahead of time in the tests: for each type and padded head size the tiling that needs most registers."""
    cases: list[tuple[str, torch.dtype, int, int, bool]] = [
        ("bf16_d64_rows16", torch.bfloat16, 64, 16, False),
        ("fp16_d80_rows64", torch.float16, 80, 64, False),
        ("bf16_d128_rows128", torch.bfloat16, 128, 128, False),
        ("bf16_fp8_d128_rows128", torch.bfloat16, 128, 128, True),
        ("bf16_d256_rows32", torch.bfloat16, 256, 32, False),
        ("fp32_d128", torch.float32, 128, 16, False),
        ("fp32_d256", torch.float32, 256, 16, False),
    ]
    return [_variant(part, *case) for case in cases for part in ("context", "nodes")]


def _variant(part: str, name: str, dtype: torch.dtype, head_size: int, rows: int, is_fp8: bool) -> Variant:
    tiling = Tiling.choose(dtype, head_size, rows)
    kernel = _context_kernel if part == "context" else _nodes_kernel
    of_query = "*" + {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}[dtype]
    pointers = {"query_ptr": of_query, "cache_ptr": "*u8" if is_fp8 else of_query, "out_ptr": of_query}
    pointers |= {"context_ptr": "*fp32", "log_sum_ptr": "*fp32", "ancestors_ptr": "*u8"}
    constants: dict[str, Any] = {
        "GROUP": 4,
        "BLOCK_SIZE": 16,
        "HEAD": head_size,
        "HEAD_PAD": padded_head_size(head_size),
        "FP8": is_fp8,
        "ROWS": tiling.rows,
        "KEYS": tiling.keys,
    }
    if not is_fp8:
        constants |= {"k_scale_ptr": None, "v_scale_ptr": None}
    types = {
        argument: pointers.get(argument, _kind(argument)) for argument in kernel.arg_names if argument not in constants
    }
    # Entries and rows of heads lie at multiples of 16 elements, as the strides of tables and masks do not.
    wide = frozenset(
        a for a in types if a.endswith("_stride") and a.split("_")[0] in ("query", "cache", "out", "context")
    )
    return Variant(
        f"{part}_{name}", kernel, types, constants, tiling.num_warps, tiling.num_stages, multiples_of_16=wide
    )


def _kind(argument: str) -> str:
    if argument == "scale" or argument.endswith("scale_ptr"):
        return "fp32" if argument == "scale" else "*fp32"
    return "*i32" if argument.endswith("_ptr") else "i32"
