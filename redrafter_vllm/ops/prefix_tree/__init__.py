# SPDX-License-Identifier: Apache-2.0
"""Beams deduplicated into a prefix tree of fixed capacity."""

from torch import Tensor

from redrafter_vllm.ops.dispatch import use_kernel
from redrafter_vllm.ops.prefix_tree import reference

__all__ = ["ancestor_mask", "prefix_tree"]


def prefix_tree(
    tokens: Tensor, token_log_probs: Tensor, max_nodes: int, beam_limit: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See `reference.prefix_tree`; on CUDA devices by a kernel."""
    if use_kernel(tokens):
        from redrafter_vllm.ops.prefix_tree import kernel

        return kernel.prefix_tree(tokens, token_log_probs, max_nodes, beam_limit)
    return reference.prefix_tree(tokens, token_log_probs, max_nodes, beam_limit)


def ancestor_mask(parents: Tensor, num_nodes: Tensor) -> Tensor:
    """See `reference.ancestor_mask`; on CUDA devices by a kernel."""
    if use_kernel(parents):
        from redrafter_vllm.ops.prefix_tree import kernel

        return kernel.ancestor_mask(parents, num_nodes)
    return reference.ancestor_mask(parents, num_nodes)
