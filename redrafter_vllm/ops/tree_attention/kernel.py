# SPDX-License-Identifier: Apache-2.0
"""Launches tree attention in Triton: two kernels that read each key once per block of query rows."""

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from redrafter_vllm.ops.tree_attention.device import context_kernel, nodes_kernel
from redrafter_vllm.ops.tree_attention.reference import TreeBatch
from redrafter_vllm.ops.variant import Variant

MAX_HEAD_SIZE = 256
# The merge needs registers, and the query's own keys are few: reading them for each block of rows costs little.
_NODE_ROWS = 32


@dataclass(frozen=True)
class Tiling:
    """Tiles of a launch: query rows and keys of one tile, warps of one program."""

    rows: int
    keys: int
    num_warps: int
    num_stages: int = 3

    @classmethod
    def choose(cls, dtype: torch.dtype, head_size: int, max_rows: int) -> "Tiling":
        """A tiling without spills for any query length; `max_rows` is query length times heads per key head."""
        padded, rows = padded_head_size(head_size), max(16, triton.next_power_of_2(max_rows))
        if dtype == torch.float32:
            return cls(16, 16, 4 if padded <= 128 else 8, 1)
        if padded > 128:
            return cls(min(rows, 32), 32, 4 if rows <= 16 else 8)
        return cls(min(rows, 64), 32, 4 if rows <= 32 else 8)


def padded_head_size(head_size: int) -> int:
    """The width of a tile: a power of two, as Triton requires, and enough for a matrix product."""
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
    """Attention to the keys that were cached before the query, in S parts with their natural log-sums.

    An empty part's log-sum is minus infinity and its mean is not written.
    """
    if _is_fp8(query):
        raise ValueError("the context kernel takes no FP8 query")
    tiling, arguments = _arguments(query, kv_cache, batch, scale, k_scale, v_scale, query.dtype)
    num_tokens, num_heads, _ = query.shape
    blocks = _row_blocks(query, kv_cache, batch, tiling)
    num_requests = batch.seq_lens.shape[0]
    if num_splits is None:
        longest = batch.block_table.shape[1] * kv_cache.shape[2]
        num_splits = choose_splits(query.device, blocks * num_requests, longest)
    context = torch.empty(num_splits, *query.shape, dtype=torch.float32, device=query.device)
    log_sum = torch.empty(num_splits, num_heads, num_tokens, dtype=torch.float32, device=query.device)
    if num_tokens and num_requests:
        context_kernel[(blocks, num_requests, num_splits)](context, log_sum, num_tokens, **arguments)
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
    q_scale: Tensor | None = None,
) -> Tensor:
    """Attention of the query to itself, merged with that to S parts of the context, as the reference."""
    if out is None:
        out = torch.empty_like(query, dtype=context.dtype if _is_fp8(query) else query.dtype)
    tiling, arguments = _arguments(query, kv_cache, batch, scale, k_scale, v_scale, out.dtype, _NODE_ROWS)
    if out.stride(2) != 1 or context.stride(3) != 1 or context_log_sum.stride(2) != 1:
        raise ValueError("the last dimension of out, context and context_log_sum must be contiguous")
    num_requests, ancestors = batch.seq_lens.shape[0], batch.ancestors
    if query.shape[0] and num_requests:
        nodes_kernel[(_row_blocks(query, kv_cache, batch, tiling), num_requests)](
            out, out.stride(0), out.stride(1),
            context, context.stride(0), context.stride(1), context.stride(2),
            context_log_sum, context_log_sum.stride(0), context_log_sum.stride(1), context.shape[0],
            ancestors.view(torch.uint8), ancestors.stride(0), ancestors.stride(1), batch.num_drafts,
            q_scale_ptr=q_scale,
            FP8_QUERY=_is_fp8(query),
            **arguments,
        )  # fmt: skip
    return out


def choose_splits(device: torch.device, num_programs: int, longest: int) -> int:
    """Parts of the context that give each multiprocessor about two programs, of at least 128 keys each."""
    if device.type != "cuda":
        return 1
    wanted = triton.cdiv(2 * torch.cuda.get_device_properties(device).multi_processor_count, max(num_programs, 1))
    return max(1, min(wanted, longest // 128, 64))


def _is_fp8(tensor: Tensor) -> bool:
    """Whether it holds e4m3 numbers, or their bytes."""
    return tensor.dtype in (torch.float8_e4m3fn, torch.uint8)


def _row_blocks(query: Tensor, kv_cache: Tensor, batch: TreeBatch, tiling: Tiling) -> int:
    """Blocks of query rows over all key heads, of a request with the longest query."""
    num_kv_heads = kv_cache.shape[1]
    return triton.cdiv(batch.max_query_len * query.shape[1] // num_kv_heads, tiling.rows) * num_kv_heads


def _arguments(
    query: Tensor,
    kv_cache: Tensor,
    batch: TreeBatch,
    scale: float,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    dtype: torch.dtype,
    max_rows: int = 64,
) -> tuple[Tiling, dict[str, Any]]:
    """Tiling and arguments of both kernels; they multiply in `dtype`."""
    (_, num_heads, head_size), (_, num_kv_heads, block_size, entry_size) = query.shape, kv_cache.shape
    if entry_size != 2 * head_size or num_heads % num_kv_heads or head_size > MAX_HEAD_SIZE:
        raise ValueError(
            f"query {list(query.shape)} and cache {list(kv_cache.shape)} do not fit: the cache holds keys and values "
            f"side by side, and heads of up to {MAX_HEAD_SIZE}"
        )
    is_fp8 = _is_fp8(kv_cache)
    if not is_fp8 and not kv_cache.dtype == query.dtype == dtype:
        raise ValueError(
            f"a cache of {kv_cache.dtype} needs query and out of the same type, not {query.dtype}, {dtype}"
        )
    if query.stride(2) != 1 or kv_cache.stride(3) != 1:
        raise ValueError("the last dimension of query and kv_cache must be contiguous")
    group = num_heads // num_kv_heads
    tiling = Tiling.choose(dtype, head_size, min(batch.max_query_len * group, max_rows))
    return tiling, {
        "query_ptr": query.view(torch.uint8) if _is_fp8(query) else query,
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


def variants() -> list[Variant]:
    """Compiled ahead of time in the tests: for each type and padded head size the tiling that needs most registers."""
    cases: list[tuple[str, str, torch.dtype, int, int, bool]] = [
        ("context", "bf16_d64_rows16", torch.bfloat16, 64, 16, False),
        ("context", "fp16_fp8_d112_rows32", torch.float16, 112, 32, True),
        ("context", "bf16_d128_rows64", torch.bfloat16, 128, 64, False),
        ("context", "bf16_fp8_d128_rows64", torch.bfloat16, 128, 64, True),
        ("context", "bf16_d256_rows32", torch.bfloat16, 256, 32, False),
        ("context", "bf16_fp8_d256_rows32", torch.bfloat16, 256, 32, True),
        ("context", "fp32_d256", torch.float32, 256, 16, False),
        ("nodes", "fp16_d80_rows16", torch.float16, 80, 16, False),
        ("nodes", "bf16_d128_rows32", torch.bfloat16, 128, 32, False),
        ("nodes", "bf16_fp8_d128_rows32", torch.bfloat16, 128, 32, True),
        ("nodes", "bf16_fp8_d256_rows32", torch.bfloat16, 256, 32, True),
        ("nodes", "bf16_flash_d128_rows32", torch.bfloat16, 128, 32, False),
        ("nodes", "bf16_flash_d256_rows32", torch.bfloat16, 256, 32, False),
        ("nodes", "bf16_fp8_fp8query_d128_rows32", torch.bfloat16, 128, 32, True),
        ("nodes", "bf16_fp8_fp8query_d256_rows32", torch.bfloat16, 256, 32, True),
        ("nodes", "fp32_d128", torch.float32, 128, 16, False),
        ("nodes", "fp32_d256", torch.float32, 256, 16, False),
    ]
    return [_variant(*case) for case in cases]


def _variant(part: str, name: str, dtype: torch.dtype, head_size: int, rows: int, is_fp8: bool) -> Variant:
    tiling = Tiling.choose(dtype, head_size, rows if part == "context" else min(rows, _NODE_ROWS))
    kernel = context_kernel if part == "context" else nodes_kernel
    of_query = "*" + {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}[dtype]
    is_fp8_query = "fp8query" in name
    pointers = {
        "query_ptr": "*u8" if is_fp8_query else of_query,
        "cache_ptr": "*u8" if is_fp8 else of_query,
        "out_ptr": of_query,
    }
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
    if part == "nodes":
        constants |= {"FP8_QUERY": is_fp8_query} | ({} if is_fp8_query else {"q_scale_ptr": None})
    if not is_fp8:
        constants |= {"k_scale_ptr": None, "v_scale_ptr": None}
        # Triton makes an argument of 1 a constant.
        constants |= {} if part == "context" else {"num_parts": 1, "num_kv_heads": 1}
    types = {
        argument: pointers.get(argument, _kind(argument)) for argument in kernel.arg_names if argument not in constants
    }
    # Entries and rows of heads are at multiples of 16 elements, unlike rows of tables and masks.
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
