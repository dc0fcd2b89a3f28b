# SPDX-License-Identifier: Apache-2.0
"""What stands around the product of the recurrence: the tokens' rows before it or behind it."""

from torch import Tensor

from redrafter_vllm.ops.dispatch import use_kernel
from redrafter_vllm.ops.recurrence import reference

__all__ = ["add_tokens", "tokens_and_state"]


def tokens_and_state(inputs: Tensor, tokens: Tensor, state: Tensor) -> Tensor:
    """See `reference.tokens_and_state`; on CUDA devices by one launch."""
    if use_kernel(state):
        from redrafter_vllm.ops.recurrence import kernel

        return kernel.tokens_and_state(inputs, tokens, state)
    return reference.tokens_and_state(inputs, tokens, state)


def add_tokens(product: Tensor, inputs: Tensor, tokens: Tensor) -> Tensor:
    """See `reference.add_tokens`; on CUDA devices by one launch."""
    if use_kernel(product):
        from redrafter_vllm.ops.recurrence import kernel

        return kernel.add_tokens(product, inputs, tokens)
    return reference.add_tokens(product, inputs, tokens)
