# SPDX-License-Identifier: Apache-2.0
"""The beams of a search packed into a prefix tree of fixed capacity."""

from redrafter_vllm.ops.dispatch import dispatch
from redrafter_vllm.ops.prefix_tree import reference

__all__ = ["ancestor_mask", "prefix_tree"]

ancestor_mask = dispatch(reference.ancestor_mask)
prefix_tree = dispatch(reference.prefix_tree)
