# SPDX-License-Identifier: Apache-2.0
"""Exact verification of a draft tree: walk it along the tokens that the target itself emits."""

from torch import Tensor

from redrafter_vllm.ops.dispatch import use_kernel
from redrafter_vllm.ops.tree_verify import reference
from redrafter_vllm.ops.tree_verify.reference import Walk

__all__ = ["Walk", "tree_verify"]


def tree_verify(
    sampled: Tensor,  # [R]
    first_row: Tensor,  # [B]
    tokens: Tensor,  # [B, N]
    parents: Tensor,  # [B, N]
    valid: Tensor,  # [B, N] bool
    max_depth: int,
) -> Walk:
    """See `reference.tree_verify`; on CUDA devices by a kernel."""
    if use_kernel(sampled):
        from redrafter_vllm.ops.tree_verify import kernel

        return kernel.tree_verify(sampled, first_row, tokens, parents, valid, max_depth)
    return reference.tree_verify(sampled, first_row, tokens, parents, valid, max_depth)
