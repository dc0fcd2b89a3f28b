# SPDX-License-Identifier: Apache-2.0
"""The recurrence without its matrix product, in plain torch."""

import torch
from torch import Tensor
from torch.nn.functional import embedding, silu


def tokens_and_state(inputs: Tensor, tokens: Tensor, state: Tensor) -> Tensor:
    """E(g) ⊕ s in the state's type: rows of `inputs` [V, H] by `tokens` [B, W] beside `state` [B, W, H]: [B, W, 2H]."""
    return torch.cat((embedding(tokens, inputs).to(state.dtype), state), -1)


def add_tokens(product: Tensor, inputs: Tensor, tokens: Tensor) -> Tensor:
    """silu(W·E(g) + U·s): `inputs` [V, H] are W·E, `product` [B, W, H] is the state's, in its type: [B, W, H]."""
    return silu(embedding(tokens, inputs).to(product.dtype) + product)
