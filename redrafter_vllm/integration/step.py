# SPDX-License-Identifier: Apache-2.0
"""One step's drafts and rows, from the preparation of its inputs to the drawing of the next trees."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.utils import torch_utils
from vllm.v1.worker.gpu.input_batch import InputBatch

from redrafter_vllm.ops.tree_verify import Walk
from redrafter_vllm.state import BatchDrafts, DraftRows
from redrafter_vllm.verifier import RowLayout, leaf_rows


@dataclass
class DraftStep:
    """The batch view of a step. `drafts` and `layout` are None when no drafts are scheduled."""

    batch: InputBatch
    slots: Tensor  # [tokens] cache slot of every token
    drafts: BatchDrafts | None = None
    layout: RowLayout | None = None
    walk: Walk | None = None

    @classmethod
    def begin(cls, batch: InputBatch, slot_mappings: Tensor, rows: DraftRows) -> "DraftStep":
        """Look up the trees of the requests that the scheduler gave drafts to (`slot_mappings` [groups, tokens])."""
        step = cls(batch, slot_mappings[0])
        if batch.num_draft_tokens > 0:
            assert batch.num_draft_tokens_per_req is not None
            step.layout = _row_layout(batch, batch.num_draft_tokens_per_req)
            step.drafts = rows.gather(batch.idx_mapping, step.layout.num_drafts)
        return step

    def set_rotary_positions(self) -> None:
        """A node stands at its depth behind the root, whatever slot it is stored in. In place.

        vLLM has filled in storage positions and derived the slots from them; the model and the sampler now need
        positions in the text. Slots without a node keep theirs: nobody looks at what they compute.
        """
        if self.layout is None or self.drafts is None:
            return
        node_R = (self.layout.local_of_row - 1).clamp(min=0)
        depth_R = self.drafts.depths[self.layout.req_of_row, node_R]
        is_node_R = self.drafts.valid[self.layout.req_of_row, node_R] & (self.layout.local_of_row > 0)
        shift_R = torch.where(is_node_R, depth_R - self.layout.local_of_row, 0)
        self.batch.positions[self.batch.logits_indices] += shift_R

    def context_tokens(self) -> Tensor:  # [B]
        """Token index, within the step, of the last accepted token of every request."""
        if self.walk is None or self.layout is None:
            return self.batch.logits_indices
        return self.batch.logits_indices[leaf_rows(self.walk, self.layout)]

    def compaction_slots(self) -> tuple[Tensor, Tensor] | None:  # [B, T], [B, T]
        """Where the accepted nodes are stored and where they belong; nothing to move names the root's slot twice."""
        if self.walk is None or self.layout is None:
            return None
        path_BT = self.walk.path
        root_token_B1 = self.batch.logits_indices[self.layout.first_row][:, None]
        depth_T = torch.arange(1, path_BT.shape[1] + 1, device=path_BT.device)
        moves_BT = path_BT >= 0
        source_BT = self.slots[root_token_B1 + torch.where(moves_BT, path_BT + 1, 0)]
        target_BT = self.slots[root_token_B1 + torch.where(moves_BT, depth_T, 0)]
        return source_BT, target_BT


def _row_layout(batch: InputBatch, num_drafts: np.ndarray) -> RowLayout:
    """Counts per request are known to the host, so the map from rows to requests costs one small copy."""
    device: Any = batch.logits_indices.device
    req_of_row = np.repeat(np.arange(batch.num_reqs, dtype=np.int64), np.diff(batch.cu_num_logits_np))
    return RowLayout(
        first_row=batch.cu_num_logits[:-1].long(),
        num_drafts=torch_utils.async_tensor_h2d(num_drafts.astype(np.int64), device=device),
        req_of_row=torch_utils.async_tensor_h2d(req_of_row, device=device),
        local_of_row=batch.expanded_local_pos.long(),
    )
