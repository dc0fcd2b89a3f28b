# SPDX-License-Identifier: Apache-2.0
"""Arithmetic in which a row's result does not depend on other rows, so that caches can be compared exactly.

A matrix product rounds differently for one row than for seventeen, and a softmax over masked keys adds in another order
than one over the visible keys alone. Here every row goes through its linear layers alone and attends to exactly its
visible keys, gathered in order: two runs then differ only in what they stored, and where.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from redrafter_vllm.integration.attention import cpu
from tests.engine.generation import runner


def rowwise_attention(
    query: Tensor, kv_cache: Tensor, block_ids: Tensor, num_keys: int, mask: Tensor | None, scale: float
) -> Tensor:
    query_len, num_heads, head_size = query.shape
    num_kv_heads = kv_cache.shape[1]
    pages = kv_cache[block_ids].transpose(0, 1).reshape(num_kv_heads, -1, 2 * head_size)[:, :num_keys]
    keys, values = pages.split(head_size, dim=-1)
    visible = torch.ones(query_len, num_keys, dtype=torch.bool).tril()
    if mask is not None:
        visible = mask[:query_len] == 0  # the same for each query head of a key head
    rows = []
    for row in range(query_len):
        own = visible[row].nonzero()[:, 0]
        heads = query[row].view(num_kv_heads, -1, head_size)
        weights = torch.softmax(heads @ keys[:, own].transpose(1, 2) * scale, dim=-1)
        rows.append((weights @ values[:, own].contiguous()).reshape(num_heads, head_size))
    return torch.stack(rows)


@contextmanager
def row_invariant(llm: Any) -> Iterator[Callable[[], None]]:
    """Run `llm` with row-invariant linear layers and attention.

    Yields a function to call when the target has got new weights, which replace its layers' products.
    """

    def rowwise(linear: Any) -> Any:
        @functools.wraps(linear)
        def apply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            return torch.cat([linear(row, weight, bias) for row in x.split(1)])

        return apply

    layers = [module for module in runner(llm).model.modules() if hasattr(module, "cpu_linear")]
    assert layers and all(callable(layer.cpu_linear) for layer in layers)

    def wrap() -> None:
        for layer in layers:
            layer.cpu_linear = rowwise(getattr(layer.cpu_linear, "__wrapped__", layer.cpu_linear))

    wrap()
    try:
        with patch.object(cpu, "paged_attention", rowwise_attention):
            yield wrap
    finally:
        for layer in layers:
            layer.cpu_linear = layer.cpu_linear.__wrapped__
