# SPDX-License-Identifier: Apache-2.0
"""Arithmetic in which a row's result does not depend on other rows, so that caches can be compared exactly.

A matrix product rounds differently for one row than for seventeen, and vLLM's attention adds in another order than that
of trees. Here every row goes through its linear layers alone, and all attend by the C++ kernel of trees, where hidden
keys and other rows make no difference: two runs then differ only in what they stored, and where.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from redrafter_vllm.integration.attention.metadata import TreeMetadataBuilder
from tests.engine.generation import runner


def all_as_trees(self: TreeMetadataBuilder, common: Any, trees: Any) -> int:
    """Every request goes through the attention of trees, where vLLM's kernel would take those without drafts."""
    return common.num_reqs


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
        with patch.object(TreeMetadataBuilder, "_num_tree_requests", all_as_trees):
            yield wrap
    finally:
        for layer in layers:
            layer.cpu_linear = layer.cpu_linear.__wrapped__
