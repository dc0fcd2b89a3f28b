# SPDX-License-Identifier: Apache-2.0
"""The linear layers of a drafter being served, on the kernels of this machine."""

from typing import Any

import pytest
import torch

from redrafter_vllm.integration.worker import drafter_loading
from redrafter_vllm.integration.worker.drafter_loading import linear_maker
from tests.cpu_kernels import CHOICES, has_sgl_kernels, inputs, linear_kernels
from tests.engine.generation import cpu_only
from tests.integration.platforms import CPU, TURING
from tests.ops.test_launches import Launches


@pytest.mark.parametrize(
    ("platform", "able", "largest"),
    [
        (CPU, {"architecture": "x86_64", "avx2": True, "avx512_vnni": False, "avx_vnni": False}, 64),
        (CPU, {"architecture": "x86_64", "avx512_vnni": True, "avx_vnni": False}, None),
        (CPU, {"architecture": "x86_64", "avx512_vnni": False, "avx_vnni": True}, None),
        (CPU, {"architecture": "aarch64"}, None),
        (TURING, {"architecture": "x86_64"}, None),
    ],
)
def test_int8_codes_fit_the_processors_sums(
    platform: Any, able: dict[str, Any], largest: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2 · 255 · 64 = 32,640 fits into 16 bits; with 65 it would be 33,150, above 32,767."""
    monkeypatch.setattr(drafter_loading, "current_platform", platform)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able, raising=False)
    assert drafter_loading._largest_code() == largest


@cpu_only
@pytest.mark.parametrize("kernels", CHOICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("outputs", [96, 8])
def test_products(kernels: str, dtype: torch.dtype, with_bias: bool, outputs: int) -> None:
    """vLLM's own linear kernels against torch's product: any leading shape, an expanded input, with a bias or not."""
    generator = torch.Generator().manual_seed(outputs)
    weight = (torch.randn(outputs, 64, generator=generator) / 8).to(dtype)
    bias = torch.randn(outputs, generator=generator).to(dtype) if with_bias else None
    with linear_kernels(kernels):
        product = linear_maker(None)(weight, bias)
    for x in inputs(64, generator):
        exact = torch.nn.functional.linear(x.to(dtype).float(), weight.float(), None if bias is None else bias.float())
        found = product(x.to(dtype))
        assert found.shape == (*x.shape[:-1], outputs)
        assert found.dtype == dtype
        torch.testing.assert_close(found.float(), exact, atol=1e-5 if dtype == torch.float32 else 0.05, rtol=0)


@cpu_only
@pytest.mark.parametrize("kernels", CHOICES)
@pytest.mark.parametrize("shape", [(2, 64), (2, 4, 64)])
def test_a_product_is_one_launch(kernels: str, shape: tuple[int, ...]) -> None:
    """The input is not copied, with any kernel; and the chosen kernel runs."""
    if kernels == "sgl" and not has_sgl_kernels():
        pytest.skip("the replacement of SGLang's kernels makes several launches")
    with linear_kernels(kernels):
        product = linear_maker(None)(torch.randn(96, 64).bfloat16(), torch.randn(96).bfloat16())
    x = torch.randn(shape).bfloat16()
    with Launches() as launches:
        product(x)
    del launches.count["t"]  # of torch's own product, where oneDNN has none for this processor
    assert launches.count.total() == 1
    assert ("weight_packed_linear" in launches.count) == (kernels == "sgl")
