# SPDX-License-Identifier: Apache-2.0
"""Attention of a verification step: every node sees the context, the root, its ancestors and itself."""

from redrafter_vllm.ops.dispatch import dispatch
from redrafter_vllm.ops.tree_attention import reference
from redrafter_vllm.ops.tree_attention.reference import TreeBatch, query_visibility

__all__ = ["TreeBatch", "query_visibility", "tree_attention"]

tree_attention = dispatch(reference.tree_attention)
