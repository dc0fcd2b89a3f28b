# SPDX-License-Identifier: Apache-2.0
"""Launches the C++ kernel that stores keys and values in vLLM's CPU cache."""

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from redrafter_vllm.ops.native import function, library

_SOURCE = Path(__file__).with_suffix(".cpp")
_NAMES = {2: "packed_store_2", 4: "packed_store_4"}  # by the bytes of a number

_POINTERS = "key value cache slots"
_INTEGERS = (
    "key_token_stride key_head_stride value_token_stride value_head_stride cache_block_stride cache_head_stride "
    "num_tokens num_kv_heads head_size block_size"
)


class _Step(ctypes.Structure):
    """`Step` of the source."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in _POINTERS.split()),
        *((name, ctypes.c_int64) for name in _INTEGERS.split()),
    )


def supports(key: Tensor, value: Tensor, kv_cache: Tensor, slots: Tensor) -> bool:
    return key.element_size() in _NAMES and library(_SOURCE) is not None


def packed_store(key: Tensor, value: Tensor, kv_cache: Tensor, slots: Tensor) -> None:
    _, num_kv_heads, block_size, width = kv_cache.shape
    assert key.dtype == value.dtype == kv_cache.dtype and slots.dtype == torch.int64 and slots.is_contiguous()
    assert key.stride(2) == value.stride(2) == 1 and kv_cache.stride(3) == 1 and kv_cache.stride(2) == width
    step = _Step(
        *(tensor.data_ptr() for tensor in (key, value, kv_cache, slots)),
        *key.stride()[:2],
        *value.stride()[:2],
        *kv_cache.stride()[:2],
        slots.shape[0],
        num_kv_heads,
        width // 2,
        block_size,
    )
    function(_SOURCE, _NAMES[key.element_size()], "a")(ctypes.addressof(step))
