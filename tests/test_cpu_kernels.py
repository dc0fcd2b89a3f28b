# SPDX-License-Identifier: Apache-2.0
"""The replacements for vLLM's AMX kernels have the same requirements and compute the same."""

import pytest
import torch
from torch import Tensor
from vllm import _custom_ops
from vllm.model_executor.layers import utils

from tests import cpu_kernels
from tests.cpu_kernels import CHOICES, has_sgl_kernels, linear_kernels
from tests.engine.generation import cpu_only

pytestmark = cpu_only
needs_sgl = pytest.mark.skipif(not has_sgl_kernels(), reason="this processor's build of vLLM lacks the real ones")


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("kernels", CHOICES)
def test_vllm_uses_the_chosen_kernels(kernels: str) -> None:
    """In fp32 never SGLang's kernels, nor for more than 1 MiB; afterwards as before."""
    before = utils.check_cpu_sgl_kernel
    with linear_kernels(kernels):
        assert cpu_kernels.chosen() == kernels
        chosen = [
            utils.check_cpu_sgl_kernel(*size)
            for size in [(96, 64, torch.bfloat16), (96, 64, torch.int8), (96, 64, torch.float32)]
        ]
        assert not utils.check_cpu_sgl_kernel(1024, 1024, torch.bfloat16)
    assert chosen == [kernels == "sgl", kernels == "sgl", False]
    assert cpu_kernels.chosen() is None
    assert utils.check_cpu_sgl_kernel is before


@needs_sgl
@pytest.mark.parametrize("rows", [1, 12])
@pytest.mark.parametrize("with_bias", [False, True])
def test_products_are_those_of_the_kernels(rows: int, with_bias: bool, generator: torch.Generator) -> None:
    weight, x = torch.randn(96, 64, generator=generator) / 8, torch.randn(rows, 64, generator=generator).bfloat16()
    bias = torch.randn(96, generator=generator) if with_bias else None
    pack = torch.ops._C.convert_weight_packed

    plain = weight.bfloat16()
    kernel = _custom_ops.weight_packed_linear_cpu(x, pack(plain), 96, bias)
    torch.testing.assert_close(cpu_kernels.weight_packed_linear_cpu(x, plain, 96, bias), kernel, atol=0.01, rtol=0.01)

    scales = weight.abs().amax(1, keepdim=True) / 127
    codes = (weight / scales).round().to(torch.int8)
    args = scales, bias, torch.bfloat16, True
    kernel = torch.ops._C.int8_scaled_mm_with_quant(x, pack(codes), *args)
    torch.testing.assert_close(cpu_kernels.int8_scaled_mm_with_quant(x, codes, *args), kernel, atol=0.02, rtol=0.01)


@needs_sgl
@pytest.mark.parametrize(
    ("x", "sentence"),
    [
        (torch.zeros(2, 3, 64, dtype=torch.bfloat16), "mat1 must be a 2D tensor"),
        (torch.zeros(2, 64), "expect A to be bfloat16 or half"),
    ],
)
def test_they_refuse_what_the_kernels_refuse(x: Tensor, sentence: str) -> None:
    codes = torch.ones(96, 64, dtype=torch.int8)
    args = torch.ones(96, 1), None, x.dtype, True
    with pytest.raises(RuntimeError, match=sentence):
        torch.ops._C.int8_scaled_mm_with_quant(x, torch.ops._C.convert_weight_packed(codes), *args)
    with pytest.raises(RuntimeError, match=sentence):
        cpu_kernels.int8_scaled_mm_with_quant(x, codes, *args)


def test_no_rows_end_a_test_and_not_the_process() -> None:
    """The kernels divide by them: a signal, SIGFPE."""
    nothing, codes = torch.zeros(0, 64, dtype=torch.bfloat16), torch.ones(96, 64, dtype=torch.int8)
    with pytest.raises(ZeroDivisionError):
        cpu_kernels.weight_packed_linear_cpu(nothing, codes.bfloat16(), 96, None)
    with pytest.raises(ZeroDivisionError):
        cpu_kernels.int8_scaled_mm_with_quant(nothing, codes, torch.ones(96, 1), None, torch.bfloat16, True)
