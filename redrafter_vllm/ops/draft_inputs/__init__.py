# SPDX-License-Identifier: Apache-2.0
"""Inputs of a verification step from the stored trees: drafts in batch order, rows, rotary positions."""

from redrafter_vllm.ops.dispatch import dispatch
from redrafter_vllm.ops.draft_inputs import reference
from redrafter_vllm.ops.draft_inputs.reference import BatchDrafts, RowLayout, StoredTrees

__all__ = ["BatchDrafts", "RowLayout", "StoredTrees", "draft_inputs"]

draft_inputs = dispatch(reference.draft_inputs)
