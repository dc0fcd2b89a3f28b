# SPDX-License-Identifier: Apache-2.0
"""Launches the C++ kernel of tree attention on a CPU."""

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from redrafter_vllm.ops.native import function, library
from redrafter_vllm.ops.tree_attention import TreeBatch

_SOURCE = Path(__file__).with_suffix(".cpp")
_NAMES = {torch.float32: "tree_attention_float32", torch.bfloat16: "tree_attention_bfloat16"}
_LANES = 16  # slots whose keys are read at once

_POINTERS = "out query cache block_table query_start seq_lens ancestors num_drafts"
_INTEGERS = (
    "out_token_stride out_head_stride query_token_stride query_head_stride "
    "cache_block_stride cache_head_stride table_stride ancestors_stride ancestors_row_stride "
    "num_requests num_heads num_kv_heads head_size block_size"
)


class _Step(ctypes.Structure):
    """`Step` of the source."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in _POINTERS.split()),
        *((name, ctypes.c_int64) for name in _INTEGERS.split()),
        ("scale", ctypes.c_double),
    )


def supports(query: Tensor, kv_cache: Tensor, batch: TreeBatch, scale: float, out: Tensor) -> bool:
    return query.dtype in _NAMES and kv_cache.shape[2] % _LANES == 0 and library(_SOURCE) is not None


def packed_attention(query: Tensor, kv_cache: Tensor, batch: TreeBatch, scale: float, out: Tensor) -> None:
    num_requests = batch.seq_lens.shape[0]
    _, num_kv_heads, block_size, width = kv_cache.shape
    assert query.dtype == kv_cache.dtype == out.dtype and query.stride(2) == out.stride(2) == 1
    assert kv_cache[0, 0].is_contiguous() and batch.block_table.stride(1) == batch.ancestors.stride(2) == 1
    tables = batch.block_table, batch.query_start_loc, batch.seq_lens, batch.num_drafts
    assert all(table.dtype == torch.int32 for table in tables) and batch.ancestors.dtype == torch.bool
    addresses = (
        out, query, kv_cache, batch.block_table, batch.query_start_loc, batch.seq_lens, batch.ancestors,
        batch.num_drafts,
    )  # fmt: skip
    step = _Step(
        *(tensor.data_ptr() for tensor in addresses),
        *out.stride()[:2],
        *query.stride()[:2],
        *kv_cache.stride()[:2],
        batch.block_table.stride(0),
        *batch.ancestors.stride()[:2],
        num_requests,
        query.shape[1],
        num_kv_heads,
        width // 2,
        block_size,
        scale,
    )
    function(_SOURCE, _NAMES[query.dtype], "a")(ctypes.addressof(step))
