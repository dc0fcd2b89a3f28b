# SPDX-License-Identifier: Apache-2.0
"""Where quantised drafters can be served, and what the kernels of this machine make of their weights."""

from typing import Any

import pytest
import torch

from redrafter_vllm.config import OptionError
from redrafter_vllm.integration.worker import drafter_loading
from redrafter_vllm.integration.worker.drafter_loading import check_quantization, linear_maker
from tests.cpu_kernels import CHOICES, has_sgl_kernels, inputs, linear_kernels
from tests.engine.generation import cpu_only
from tests.ops.test_launches import Launches


class Platform:
    """As much of vLLM's platform as is asked for."""

    def __init__(self, kind: str, capability: int = 0) -> None:
        self.device_name, self.capability = kind, capability

    def is_cpu(self) -> bool:
        return self.device_name == "cpu"

    def is_cuda(self) -> bool:
        return self.device_name == "cuda"

    def has_device_capability(self, least: int) -> bool:
        return self.capability >= least


CPU, TURING, PASCAL, ROCM = Platform("cpu"), Platform("cuda", 75), Platform("cuda", 61), Platform("rocm")


@pytest.mark.parametrize(
    ("platform", "quantization", "dtype"),
    [
        (ROCM, None, torch.float32),
        (CPU, "int8", torch.float32),
        (TURING, "int8", torch.float16),
        (TURING, "fp8", torch.bfloat16),
    ],
)
def test_served(platform: Any, quantization: str | None, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drafter_loading, "current_platform", platform)
    check_quantization(quantization, dtype)


@pytest.mark.parametrize(
    ("platform", "quantization", "dtype", "sentence"),
    [
        (CPU, "fp8", torch.bfloat16, "'fp8' needs an NVIDIA GPU, and this is cpu; use 'int8' or leave it out"),
        (ROCM, "int8", torch.bfloat16, "'int8' needs an NVIDIA GPU, and this is rocm; leave it out"),
        (PASCAL, "fp8", torch.float16, "compute capability 7.5 or higher"),
        (TURING, "int8", torch.float32, "'int8' needs dtype bfloat16 or float16, not torch.float32"),
    ],
)
def test_refused(
    platform: Any, quantization: str, dtype: torch.dtype, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drafter_loading, "current_platform", platform)
    with pytest.raises(OptionError, match=sentence):
        check_quantization(quantization, dtype)


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
def test_codes_that_a_processor_has_room_for(
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
    """Its input is multiplied where it lies, whatever the kernel; one that was chosen runs."""
    if kernels == "sgl" and not has_sgl_kernels():
        pytest.skip("what stands in for SGLang's kernels takes several")
    with linear_kernels(kernels):
        product = linear_maker(None)(torch.randn(96, 64).bfloat16(), torch.randn(96).bfloat16())
    x = torch.randn(shape).bfloat16()
    with Launches() as launches:
        product(x)
    del launches.count["t"]  # of torch's own product, where oneDNN has none for this processor
    assert launches.count.total() == 1
    assert ("weight_packed_linear" in launches.count) == (kernels == "sgl")
