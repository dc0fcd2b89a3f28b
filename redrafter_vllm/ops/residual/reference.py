# SPDX-License-Identifier: Apache-2.0
"""A ResBlock after its matrix product, in plain torch."""

import torch
from torch import Tensor
from torch.nn.functional import silu


def residual(product: Tensor, x: Tensor) -> Tensor:
    """x + silu(product), [..., N] of one shape."""
    return x + silu(product)


def first_residual(product: Tensor, state: Tensor, share: Tensor, context: Tensor) -> Tensor:
    """The first block of a round, whose x is c ⊕ s and whose product with c is `share`.

    Args:
        product: [..., W, N] with the state.
        state: [..., W, H].
        share: [..., N] the product with the context, shared by all W, or [..., W, N].
        context: [..., N − H], or [..., W, N − H].
    """
    if share.dim() < product.dim():
        share, context = share.unsqueeze(-2), context.unsqueeze(-2)
    x = torch.cat((context.expand(*state.shape[:-1], -1), state), -1)
    return x + silu(share + product)
