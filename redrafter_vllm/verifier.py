# SPDX-License-Identifier: Apache-2.0
"""One verification: the target's token at every row in, the accepted paths out."""

from typing import NamedTuple

import torch
from torch import Tensor

from redrafter_vllm.ops.tree_verify import Walk, tree_verify
from redrafter_vllm.state import BatchDrafts


class RowLayout(NamedTuple):
    """How the logits rows of a step belong to its requests: each request has its root's row, then one per draft."""

    first_row: Tensor  # [B] the root's row
    num_drafts: Tensor  # [B] scheduled drafts
    req_of_row: Tensor  # [rows] batch index
    local_of_row: Tensor  # [rows] 0 for the root, 1 + node for a draft


def walk_drafts(sampled: Tensor, layout: RowLayout, drafts: BatchDrafts, max_depth: int) -> Walk:
    """Walk every request's tree along the target's tokens.

    Args:
        sampled: [rows] the target's token at every row.
        layout: Rows of the requests.
        drafts: Trees of the batch.
        max_depth: T, longest path.
    """
    num_slots = 1 + drafts.tokens.shape[1]
    local_M = torch.arange(num_slots, device=sampled.device)
    row_BM = layout.first_row[:, None] + torch.minimum(local_M, layout.num_drafts[:, None])
    return tree_verify(sampled[row_BM], drafts.tokens, drafts.parents, drafts.valid, max_depth)


def invalidate(drafts: BatchDrafts, layout: RowLayout, invalid_row: Tensor) -> BatchDrafts:
    """Leave out drafts that a grammar refuses (`invalid_row` [rows] bool); what hangs below is out of reach too."""
    num_nodes = drafts.tokens.shape[1]
    local_N = torch.arange(1, num_nodes + 1, device=invalid_row.device)
    row_BN = layout.first_row[:, None] + torch.minimum(local_N, layout.num_drafts[:, None])
    return drafts._replace(valid=drafts.valid & ~invalid_row[row_BN])


def leaf_rows(walk: Walk, layout: RowLayout) -> Tensor:  # [B]
    """Row of each request's last accepted node, or of its root: there stands the context of the next round."""
    num_accepted = (walk.num_emitted - 1).long()
    last_slot = (num_accepted - 1).clamp(min=0)
    last_node = walk.path.gather(1, last_slot[:, None])[:, 0]
    return layout.first_row + torch.where(num_accepted > 0, last_node + 1, 0)


def emitting_rows(walk: Walk, layout: RowLayout) -> Tensor:  # [rows]
    """For local position i of a request the row that emitted its i-th token; rows beyond name themselves."""
    max_depth = walk.path.shape[1]
    step_R = (layout.local_of_row - 1).clamp(0, max_depth - 1).long()
    node_R = walk.path[layout.req_of_row, step_R]
    own_R = torch.arange(layout.req_of_row.shape[0], device=node_R.device)
    emitted_R = (layout.local_of_row > 0) & (layout.local_of_row < walk.num_emitted[layout.req_of_row])
    return torch.where(emitted_R, layout.first_row[layout.req_of_row] + node_R + 1, own_R)
