# SPDX-License-Identifier: Apache-2.0
"""Exact verification of a draft tree: walk it along the tokens that the target itself emits."""

from redrafter_vllm.ops.tree_verify.reference import Walk, tree_verify

__all__ = ["Walk", "tree_verify"]
