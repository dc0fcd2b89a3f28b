# SPDX-License-Identifier: Apache-2.0
"""What the target's pass needs of the stored trees: drafts in batch order, rows, rotary positions."""

from torch import Tensor

from redrafter_vllm.ops.dispatch import use_kernel
from redrafter_vllm.ops.draft_inputs import reference
from redrafter_vllm.ops.draft_inputs.reference import BatchDrafts, RowLayout, StoredTrees

__all__ = ["BatchDrafts", "RowLayout", "StoredTrees", "draft_inputs"]


def draft_inputs(
    drafts: BatchDrafts,
    layout: RowLayout,
    positions: Tensor,  # [tokens]
    stored: StoredTrees,
    idx_mapping: Tensor,  # [B]
    cu_num_logits: Tensor,  # [B + 1]
    logits_indices: Tensor,  # [R]
) -> None:
    """See `reference.draft_inputs`; on CUDA devices by one launch."""
    if use_kernel(positions):
        from redrafter_vllm.ops.draft_inputs import kernel

        kernel.draft_inputs(drafts, layout, positions, stored, idx_mapping, cu_num_logits, logits_indices)
    else:
        reference.draft_inputs(drafts, layout, positions, stored, idx_mapping, cu_num_logits, logits_indices)
