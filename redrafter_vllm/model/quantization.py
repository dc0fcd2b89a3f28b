# SPDX-License-Identifier: Apache-2.0
"""8-bit drafter weights: one scale per output row, chosen so that the row's largest weight just fits."""

import torch
from torch import Tensor

from redrafter_vllm.model.packed import Linear, plain_linear

# The types of codes by the values of the option.
CODE_TYPES = {"fp8": torch.float8_e4m3fn, "int8": torch.int8}


def quantize_rows(weight: Tensor, code_type: torch.dtype, max_code: float | None = None) -> tuple[Tensor, Tensor]:
    """Codes [N, K] of `code_type` and scales [N, 1] of the weight's type, whose product approximates `weight` [N, K].

    INT8 is symmetric: -128 is not used. `max_code` limits the codes further, for kernels that do not support all.
    """
    is_float = code_type.is_floating_point
    max_code = max_code or (torch.finfo(code_type).max if is_float else torch.iinfo(code_type).max)
    scales = (weight.float().abs().amax(1, keepdim=True) / max_code).to(weight.dtype)
    # Codes are computed from the rounded scale, which kernels use. A row of zeros has scale 1, as 0 / 0 is NaN.
    scales = torch.where(scales > 0, scales, 1)
    codes = (weight.float() / scales.float()).clamp(-max_code, max_code)
    return (codes if is_float else codes.round()).to(code_type), scales


def rounding_linear(quantization: str, weight: Tensor, bias: Tensor | None) -> Linear:
    """torch's product with `weight` [N, K] rounded to its codes: the reference of every quantised kernel."""
    codes, scales = quantize_rows(weight, CODE_TYPES[quantization])
    return plain_linear((codes.float() * scales.float()).to(weight.dtype), bias)
