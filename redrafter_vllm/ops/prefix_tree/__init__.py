# SPDX-License-Identifier: Apache-2.0
"""Beams deduplicated into a prefix tree of fixed capacity."""

from redrafter_vllm.ops.prefix_tree.reference import ancestor_mask, prefix_tree

__all__ = ["ancestor_mask", "prefix_tree"]
