# SPDX-License-Identifier: Apache-2.0
"""Launches the C++ kernel of KV compaction on a CPU."""

import ctypes
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from redrafter_vllm.ops.native import function, library

_SOURCE = Path(__file__).with_suffix(".cpp")
_INTEGERS = "heads block_size width element block_stride head_stride slot_stride element_stride"


class _Cache(ctypes.Structure):
    """`Cache` of the source."""

    _fields_ = (("data", ctypes.c_void_p), *((name, ctypes.c_int64) for name in _INTEGERS.split()))


def supports(kv_caches: Sequence[Tensor], path: Tensor, root_token: Tensor, slots: Tensor) -> bool:
    return all(x.dtype == torch.int64 for x in (path, root_token, slots)) and library(_SOURCE) is not None


def kv_compact(kv_caches: Sequence[Tensor], path: Tensor, root_token: Tensor, slots: Tensor) -> None:
    num_requests, depth = path.shape
    assert depth <= 1 or path.stride(1) == 1
    root_token, slots = root_token.contiguous(), slots.contiguous()
    caches = _described(tuple((x.data_ptr(), x.element_size(), x.shape[1:], x.stride()) for x in kv_caches))
    function(_SOURCE, "kv_compact", "aiaiaaii")(
        ctypes.addressof(caches),
        len(caches),
        path.data_ptr(),
        path.stride(0),
        root_token.data_ptr(),
        slots.data_ptr(),
        num_requests,
        depth,
    )


@lru_cache(maxsize=16)
def _described(caches: tuple[Any, ...]) -> "ctypes.Array[_Cache]":
    """The caches as the source takes them; made once for each list of caches and kept."""
    described = []
    for address, size, (heads, block_size, width), strides in caches:
        in_bytes = (size * stride for stride in strides)
        block, head, slot, element = in_bytes
        described.append(_Cache(address, heads, block_size, width * size, size, block, head, slot, element))
    return (_Cache * len(described))(*described)
