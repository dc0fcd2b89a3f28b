# SPDX-License-Identifier: Apache-2.0
"""The drafts and rows of one step, from preparing its inputs to drawing the next trees."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor
from vllm.v1.worker.gpu.input_batch import InputBatch

from redrafter_vllm.drafting.buffers import BatchDrafts, DraftRows, RowLayout
from redrafter_vllm.ops.kv_compact import kv_compact
from redrafter_vllm.ops.tree_verify import Walk


@dataclass
class DraftStep:
    """The batch view of a step. `drafts` and `layout` are None when no drafts are scheduled."""

    batch: InputBatch
    slots: Tensor  # [tokens] cache slot of every token
    drafts: BatchDrafts | None = None
    layout: RowLayout | None = None
    walk: Walk | None = None
    verified: BatchDrafts | None = None  # `drafts` without those that a grammar has refused

    @property
    def num_drafts_np(self) -> np.ndarray:
        """[B] drafts of each request on the host; an upper bound where trees are trimmed on the device."""
        return np.diff(self.batch.cu_num_logits_np) - 1

    @classmethod
    def begin(cls, batch: InputBatch, slot_mappings: Tensor, rows: DraftRows) -> "DraftStep":
        """Look up the trees of the requests that the scheduler gave drafts to (`slot_mappings` [groups, tokens]).

        vLLM has filled in storage positions and derived the slots from them. The model and the sampler now need
        positions in the text: a node's is overwritten by its depth behind the root.
        """
        step = cls(batch, slot_mappings[0])
        if batch.num_draft_tokens > 0:
            step.drafts, step.layout = rows.prepare(
                batch.idx_mapping, batch.cu_num_logits, batch.logits_indices, batch.positions
            )
        return step

    def context_token(self) -> tuple[Tensor, Tensor | None]:  # [B], [B]
        """Index of each request's last accepted token among the step's tokens: the sum of both, of which None is 0."""
        if self.walk is None or self.layout is None:
            return self.batch.logits_indices, None
        return self.layout.root_token, self.walk.leaf

    def compact(self, kv_caches: Sequence[Tensor]) -> None:
        """Move the accepted path's cache entries to the slots behind the root's."""
        if self.walk is not None and self.layout is not None:
            kv_compact(kv_caches, self.walk.path, self.layout.root_token, self.slots)
