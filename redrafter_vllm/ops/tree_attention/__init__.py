# SPDX-License-Identifier: Apache-2.0
"""Attention of a verification step: every node sees the context, the root, its ancestors and itself."""

from torch import Tensor

from redrafter_vllm.ops.dispatch import use_kernel
from redrafter_vllm.ops.tree_attention import reference
from redrafter_vllm.ops.tree_attention.reference import TreeBatch, paged_attention, query_visibility

__all__ = ["TreeBatch", "paged_attention", "query_visibility", "tree_attention"]


def tree_attention(
    query: Tensor,  # [tokens, heads, head_size]
    kv_cache: Tensor,  # [num_blocks, kv_heads, block_size, 2 * head_size]
    batch: TreeBatch,
    scale: float,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:  # [tokens, heads, head_size]
    """See `reference.tree_attention`; on CUDA devices by kernels."""
    if use_kernel(query):
        from redrafter_vllm.ops.tree_attention import kernel

        return kernel.tree_attention(query, kv_cache, batch, scale, k_scale, v_scale, out)
    return reference.tree_attention(query, kv_cache, batch, scale, k_scale, v_scale, out)
