# SPDX-License-Identifier: Apache-2.0
"""Drafter weights in one byte a number: a scale per output row, chosen so that the row's largest number just fits."""

import torch
from torch import Tensor

from redrafter_vllm.model.packed import Linear, plain_linear

# What a drafter's weights can be rounded to, by the option's words.
CODE_TYPES = {"fp8": torch.float8_e4m3fn, "int8": torch.int8}


def quantize_rows(weight: Tensor, code_type: torch.dtype, largest: float | None = None) -> tuple[Tensor, Tensor]:
    """Codes [N, K] of `code_type` and scales [N, 1] of the weight's type, whose product is near `weight` [N, K].

    INT8 is symmetric: -128 is not used. `largest` limits the codes further, for kernels that have no room for all.
    """
    is_float = code_type.is_floating_point
    largest = largest or (torch.finfo(code_type).max if is_float else torch.iinfo(code_type).max)
    scales = (weight.float().abs().amax(1, keepdim=True) / largest).to(weight.dtype)
    # Codes fit the scale as kernels have it, rounded. A row of zeros has scale 1: 0 / 0 would be no code.
    scales = torch.where(scales > 0, scales, 1)
    codes = (weight.float() / scales.float()).clamp(-largest, largest)
    return (codes if is_float else codes.round()).to(code_type), scales


def rounding_linear(quantization: str, weight: Tensor, bias: Tensor | None) -> Linear:
    """torch's product with `weight` [N, K] as its codes stand for it: the reference of every quantised kernel."""
    codes, scales = quantize_rows(weight, CODE_TYPES[quantization])
    return plain_linear((codes.float() * scales.float()).to(weight.dtype), bias)
