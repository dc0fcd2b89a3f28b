# SPDX-License-Identifier: Apache-2.0
"""The FlashAttention backend: its metadata and one layer's forward pass against attention by definition."""

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
from tests.integration.attention.fake_flash import flash_attention
from tests.ops.attention_steps import Request, Step
from tests.ops.devices import DEVICE, HAS_GPU, runs_kernels

pytestmark = runs_kernels

AMPERE, HOPPER = (8, 0), (9, 0)
TREES: list[Request | None] = [(37, 0, 5), (0, 0, 3), (64, 0, 1), (21, 0, 0)]
PROMPTS: list[Request | None] = [(21, 0, 0), (0, 9, 0)]


@pytest.mark.parametrize(
    ("capability", "requests", "heads", "head_size", "dtype", "block_size", "full_graphs"),
    [
        (AMPERE, MIXED, (4, 2), 64, torch.float16, 16, False),
        (HOPPER, MIXED, (6, 2), 80, torch.bfloat16, 32, True),
        (HOPPER, TREES, (16, 1), 64, torch.float16, 64, True),
        (AMPERE, PROMPTS, (2, 2), 64, torch.float16, 16, False),
        (HOPPER, PROMPTS, (2, 2), 64, torch.float16, 16, True),
        (AMPERE, [(18, 0, 3), None], (2, 1), 256, torch.float16, 256, False),
    ],
)
def test_is_attention_by_definition(
    capability: tuple[int, int], requests: list[Request | None], heads: tuple[int, int], head_size: int,
    dtype: torch.dtype, block_size: int, full_graphs: bool, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    fake = flash_attention(monkeypatch, capability)
    step, layer = Step(requests, heads, head_size, dtype, block_size), layer_scales()
    # In memory, a page's slots may come before its heads.
    step.cache = step.cache.transpose(1, 2).contiguous().transpose(1, 2)
    common = common_metadata(step)
    metadata = make_builder("flash", step, full_graphs=full_graphs).build(0, common, trees=step_trees(step))
    step.check(forward(make_impl("flash", step), step, metadata, layer), dense_attention(step, layer))
    version, is_scheduled = (3, True) if capability == HOPPER else (2, False)
    context, causal = (version, False), (version, True)
    num_trees = {id(MIXED): 4, id(PROMPTS): 0}.get(id(requests), len(requests))
    wanted = [(*causal, len(requests) - num_trees, is_scheduled)] if num_trees < len(requests) else []
    wanted += [(*context, num_trees, is_scheduled)] if num_trees else []
    assert fake is None or fake.calls == wanted


def test_fp8_cache_and_query(monkeypatch: pytest.MonkeyPatch) -> None:
    flash_attention(monkeypatch, HOPPER)
    from vllm.v1.attention.backends.fa_utils import flash_attn_supports_kv_cache_dtype

    if not flash_attn_supports_kv_cache_dtype("fp8", head_size=64):
        pytest.skip("FlashAttention reads no FP8 cache on this GPU")
    step = Step(MIXED[:5], (4, 2), 64, torch.bfloat16, cache_dtype=torch.float8_e4m3fn)
    step.query = (step.query / 0.5).to(torch.float8_e4m3fn)
    layer, out = layer_scales(0.5, 1.7, 0.4), torch.full(step.query.shape, -777.0, device=DEVICE).bfloat16()
    metadata = make_builder("flash", step, cache_dtype="fp8").build(0, common_metadata(step), trees=step_trees(step))
    result = forward(make_impl("flash", step, "fp8"), step, metadata, layer, out)
    rows = slice(0, step.starts[-1])
    expected = dense_attention(step, layer)
    assert (result[step.starts[-1] :] == -777).all()
    # FlashAttention also rounds the weights to 4 bits, the replacement does not.
    tolerance = 0.15 if HAS_GPU else 4e-2
    torch.testing.assert_close(result[rows].float(), expected[rows], atol=tolerance, rtol=tolerance)


def test_unsupported_layers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    flash_attention(monkeypatch, AMPERE)
    from redrafter_vllm.integration.attention.flash import FlashTreeImpl

    for options, reason in (
        ({"alibi_slopes": [1.0, 0.5]}, "ALiBi"),
        ({"sliding_window": 32}, "sliding-window"),
        ({"logits_soft_cap": 30.0}, "caps"),
        ({"sinks": torch.zeros(2)}, "sinks"),
        ({"chunk_lookback": 2}, "chunk_lookback"),
    ):
        with pytest.raises(ValueError, match=reason):
            FlashTreeImpl(2, 64, 0.125, 2, **options)
    layer = layer_scales()
    step = Step(TREES, (2, 2), 64, torch.float16)
    impl = make_impl("flash", step)
    with pytest.raises(NotImplementedError, match="quantise its output"):
        impl.forward(layer, *[step.query] * 3, step.cache, object(), step.query, output_scale=layer._k_scale)
    assert (forward(impl, step, None, layer) == 0).all()  # a profiling run
