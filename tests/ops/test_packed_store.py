# SPDX-License-Identifier: Apache-2.0
"""Storing in vLLM's CPU cache: by plain torch and by the C++ kernel, against vLLM's own kernel."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from redrafter_vllm.ops.packed_store import native, reference
from tests.ops.native import needs_compiler

Store = Callable[[Tensor, Tensor, Tensor, Tensor], None]
IMPLEMENTATIONS = [
    pytest.param(reference.packed_store, id="torch"),
    pytest.param(native.packed_store, id="native", marks=needs_compiler),
]


def stored_by_vllm(key: Tensor, value: Tensor, kv_cache: Tensor, slots: Tensor) -> Tensor:
    """A copy of the cache with the keys and values."""
    from vllm import _custom_ops as ops

    result = kv_cache.clone()
    num_blocks, num_kv_heads, block_size, width = result.shape
    parts = result.view(num_blocks, num_kv_heads, 2 * block_size, width // 2).chunk(2, dim=2)
    ops.cpu_attn_reshape_and_cache(key, value, *parts, slots, "vec16" if block_size % 32 else "vec")
    return result


@pytest.mark.parametrize("store", IMPLEMENTATIONS)
@pytest.mark.parametrize("num_tokens", [1, 7, 32, 70])
@pytest.mark.parametrize(("num_kv_heads", "head_size", "block_size"), [(1, 64, 32), (3, 64, 128), (2, 80, 16)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_as_vllm_stores(
    store: Store, num_tokens: int, num_kv_heads: int, head_size: int, block_size: int, dtype: torch.dtype
) -> None:
    """Keys and values are parts of one tensor, some tokens have no slot, and padding has not even an entry for it."""
    generator = torch.Generator().manual_seed(num_tokens)
    qkv = torch.randn(num_tokens + 3, 3, num_kv_heads, head_size, generator=generator).to(dtype)
    _, key, value = qkv.unbind(1)
    num_blocks = num_tokens // block_size + 3
    kv_cache = torch.randn(num_blocks, num_kv_heads, block_size, 2 * head_size, generator=generator).to(dtype)
    slots = torch.randperm(num_blocks * block_size, generator=generator)[:num_tokens]
    slots[1::3] = -1
    expected = stored_by_vllm(key[:num_tokens], value[:num_tokens], kv_cache, slots)
    store(key, value, kv_cache, slots)
    assert torch.equal(kv_cache, expected)


@pytest.mark.parametrize("store", IMPLEMENTATIONS)
def test_siblings_share_lines(store: Store) -> None:
    """Neighbours in a block, across its end; everything else keeps its bits."""
    kv_cache = torch.full((3, 2, 32, 128), torch.nan)
    key, value = torch.arange(2 * 6 * 2 * 64.0).view(2, 6, 2, 64).unbind()
    expected = stored_by_vllm(key, value, kv_cache, torch.arange(61, 67))
    store(key, value, kv_cache, torch.arange(61, 67))
    assert torch.equal(kv_cache.view(torch.int32), expected.view(torch.int32))
    assert int(kv_cache.isfinite().sum()) == 6 * 2 * 128


@pytest.mark.parametrize("store", IMPLEMENTATIONS)
def test_a_step_without_tokens(store: Store) -> None:
    kv_cache = torch.randn(1, 1, 16, 64)
    before = kv_cache.clone()
    store(*torch.randn(2, 4, 1, 32).unbind(), kv_cache, torch.empty(0, dtype=torch.int64))
    assert torch.equal(kv_cache, before)
