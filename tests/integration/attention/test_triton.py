# SPDX-License-Identifier: Apache-2.0
"""The Triton backend: its metadata and one layer's forward pass, vLLM's own kernel for prompts included."""

import pytest
import torch

from tests.integration.attention.backend_steps import (
    MIXED,
    common_metadata,
    dense_attention,
    forward,
    layer_scales,
    make_builder,
    make_impl,
    step_trees,
)
from tests.ops.attention_steps import Request, Step
from tests.ops.devices import HAS_GPU, runs_kernels

pytestmark = runs_kernels

PROMPTS: list[Request | None] = [(21, 0, 0), (0, 9, 0)]


@pytest.mark.parametrize(
    ("requests", "heads", "head_size", "dtype", "block_size"),
    [
        (MIXED, (4, 2), 64, torch.float32, 16),
        (MIXED[:4], (3, 1), 96, torch.bfloat16, 48),
        (PROMPTS, (2, 2), 64, torch.float16, 32),
    ],
)
def test_is_attention_by_definition(
    requests: list[Request | None], heads: tuple[int, int], head_size: int, dtype: torch.dtype, block_size: int
) -> None:
    step, layer = Step(requests, heads, head_size, dtype, block_size), layer_scales()
    metadata = make_builder("triton", step).build(0, common_metadata(step), trees=step_trees(step))
    step.check(forward(make_impl("triton", step), step, metadata, layer), dense_attention(step, layer))


@pytest.mark.skipif(HAS_GPU and torch.cuda.get_device_capability() < (8, 9), reason="vLLM needs compute capability 8.9")
def test_fp8_cache() -> None:
    step = Step(MIXED[:4], (4, 2), 64, torch.float16, cache_dtype=torch.float8_e4m3fn)
    layer = layer_scales(9.0, 1.7, 0.4)
    metadata = make_builder("triton", step, cache_dtype="fp8").build(0, common_metadata(step), trees=step_trees(step))
    attention = make_impl("triton", step, "fp8")
    assert not attention.supports_quant_query_input
    layer._q_scale.fill_(1.0)
    step.check(forward(attention, step, metadata, layer), dense_attention(step, layer))
