# SPDX-License-Identifier: Apache-2.0
"""What follows the product of a ResBlock: its nonlinearity and its skip."""

from torch import Tensor

from redrafter_vllm.ops.dispatch import use_kernel
from redrafter_vllm.ops.residual import reference

__all__ = ["first_residual", "residual"]


def residual(product: Tensor, x: Tensor) -> Tensor:
    """See `reference.residual`; on CUDA devices by one launch."""
    if use_kernel(product):
        from redrafter_vllm.ops.residual import kernel

        return kernel.residual(product, x)
    return reference.residual(product, x)


def first_residual(product: Tensor, state: Tensor, share: Tensor, context: Tensor) -> Tensor:
    """See `reference.first_residual`; on CUDA devices by one launch."""
    if use_kernel(product):
        from redrafter_vllm.ops.residual import kernel

        return kernel.first_residual(product, state, share, context)
    return reference.first_residual(product, state, share, context)
