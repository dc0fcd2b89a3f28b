# SPDX-License-Identifier: Apache-2.0
"""Launches the C++ kernel for products with packed weights."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from redrafter_vllm.ops.native import function, library
from redrafter_vllm.ops.packed_linear.reference import PANEL

Product = Callable[[Tensor, Tensor, Tensor | None, int], Tensor]

_SOURCE = Path(__file__).with_suffix(".cpp")
_OPERATOR = _SOURCE.with_name("torch_op.cpp")

OPERATORS = torch.library.Library("redrafter", "FRAGMENT")
OPERATORS.define("packed_linear(Tensor x, Tensor packed, Tensor? bias, int size) -> Tensor")


def supports(weight: Tensor) -> bool:
    """Whether a weight [N, K] can be packed, and this processor then multiplies few rows faster than with oneDNN.

    Processors with AMX have larger instructions, which oneDNN uses.
    """
    is_packable = weight.is_cpu and weight.dim() == 2 and weight.dtype == torch.bfloat16 and weight.shape[1] % 2 == 0
    has_instructions = torch.cpu._is_avx512_bf16_supported() and not torch.cpu._is_amx_tile_supported()
    return is_packable and has_instructions and register()


@cache
def register() -> bool:
    """Give torch's operator its implementation: the one in C++, or, where that cannot be built, the function below."""
    if library(_OPERATOR, uses_torch=True) is not None:
        return True
    if library(_SOURCE) is None:
        return False
    OPERATORS.impl("packed_linear", packed_linear, "CPU")
    return True


def packed_linear(x: Tensor, packed: Tensor, bias: Tensor | None, size: int) -> Tensor:
    if x.dim() != 2:  # a step has hundreds of products: they are spared what they do not need
        return packed_linear(x.reshape(-1, x.shape[-1]), packed, bias, size).view(*x.shape[:-1], size)
    if x.stride(1) != 1:
        x = x.contiguous()
    num_rows, pairs = x.shape[0], packed.shape[1]
    assert x.dtype == packed.dtype == torch.bfloat16 and packed.is_contiguous()
    assert x.shape[1] == 2 * pairs and size <= PANEL * packed.shape[0]
    assert bias is None or (bias.dtype == torch.bfloat16 and bias.shape == (size,) and bias.is_contiguous())
    result = x.new_empty(num_rows, size)
    kernel()(
        x.data_ptr(),
        packed.data_ptr(),
        None if bias is None else bias.data_ptr(),
        result.data_ptr(),
        num_rows,
        x.stride(0),
        pairs,
        size,
    )
    return result


@cache
def kernel() -> Callable[..., None]:
    """The function of the source; its operands are addresses and sizes."""
    return function(_SOURCE, "packed_linear", "aaaaiiii")
