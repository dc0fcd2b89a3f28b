# SPDX-License-Identifier: Apache-2.0
"""Attention of a verification step: every node sees the context, the root, its ancestors and itself."""

from redrafter_vllm.ops.tree_attention.reference import paged_attention, query_visibility

__all__ = ["paged_attention", "query_visibility"]
