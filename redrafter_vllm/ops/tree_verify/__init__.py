# SPDX-License-Identifier: Apache-2.0
"""Exact verification of a draft tree: walk it along the tokens that the target itself emits."""

from redrafter_vllm.ops.dispatch import dispatch
from redrafter_vllm.ops.tree_verify import reference
from redrafter_vllm.ops.tree_verify.reference import Walk

__all__ = ["Walk", "tree_verify"]

tree_verify = dispatch(reference.tree_verify)
