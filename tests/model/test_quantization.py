# SPDX-License-Identifier: Apache-2.0
"""8-bit weights, by hand and by the distance between neighbouring codes."""

import pytest
import torch

from redrafter_vllm.model.quantization import CODE_TYPES, quantize_rows, rounding_linear


def test_int8_by_hand() -> None:
    weight = torch.tensor([[127.0, -1.2, 0.4], [-0.254, 0.001, 0.127], [0.0, 0.0, 0.0]])
    codes, scales = quantize_rows(weight, torch.int8)
    torch.testing.assert_close(scales, torch.tensor([[1.0], [0.002], [1.0]]))
    # 0.001 is half of a scale away from 0 and from 0.002: both codes are correct.
    assert codes.tolist() in ([[127, -1, 0], [-127, near, 64], [0, 0, 0]] for near in (0, 1))


def test_fp8_by_hand() -> None:
    """The largest number becomes 448, the largest code; from 256 on codes are 32 apart, from 16 on 2."""
    weight = torch.tensor([[448.0, 300.0, 17.2, -1.0], [2.0, 1.0, 0.0, -2.0]])
    codes, scales = quantize_rows(weight, torch.float8_e4m3fn)
    torch.testing.assert_close(scales, torch.tensor([[1.0], [2 / 448]]))
    assert codes.float().tolist() == [[448.0, 288.0, 18.0, -1.0], [448.0, 224.0, 0.0, -448.0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("quantization", sorted(CODE_TYPES))
def test_no_number_is_further_off_than_half_a_step(quantization: str, dtype: torch.dtype) -> None:
    weight = (torch.randn(50, 64, generator=torch.Generator().manual_seed(0)) * 0.02).to(dtype)
    codes, scales = quantize_rows(weight, CODE_TYPES[quantization])
    assert scales.dtype == dtype
    error = (codes.float() * scales.float() - weight.float()).abs()
    largest = weight.float().abs().amax(1, keepdim=True)
    # INT8: steps of 1/127 of the largest. FP8: 3 bits after the leading one, and subnormals below 2**-6.
    step = largest / 127 if quantization == "int8" else weight.float().abs() / 8 + largest / 448 * 2**-9
    assert bool((error <= step * 0.5 + largest * 2**-8).all())


@pytest.mark.parametrize("quantization", sorted(CODE_TYPES))
def test_the_rounded_product_is_near_the_exact_one(quantization: str) -> None:
    weight, bias, x = torch.randn(40, 256), torch.randn(40), torch.randn(2, 3, 256)
    exact = x @ weight.T + bias
    error = rounding_linear(quantization, weight, bias)(x) - exact
    # Independent errors of at most half a step: 0.3 % of the largest weight for INT8, 3 % of each weight for FP8.
    assert 0 < error.std() < (0.02 if quantization == "int8" else 0.04) * exact.std()


def test_fewer_codes() -> None:
    """By hand: 0.5 of 2.0 is a quarter of 64."""
    codes, scales = quantize_rows(torch.tensor([[2.0, -0.5], [-64.0, 1.0]]), torch.int8, 64)
    assert codes.tolist() == [[64, -16], [-64, 1]]
    assert scales.tolist() == [[2 / 64], [1.0]]
