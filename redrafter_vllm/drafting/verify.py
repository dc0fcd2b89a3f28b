# SPDX-License-Identifier: Apache-2.0
"""One verification: from the target's token at every row to the accepted paths."""

import torch
from torch import Tensor

from redrafter_vllm.drafting.buffers import BatchDrafts, RowLayout
from redrafter_vllm.ops.tree_verify import Walk, tree_verify

__all__ = ["RowLayout", "Walk", "emitting_rows", "invalidate", "part_of", "walk_drafts"]


def walk_drafts(sampled: Tensor, layout: RowLayout, drafts: BatchDrafts, max_depth: int) -> Walk:
    """Walk every request's tree along the target's tokens.

    Args:
        sampled: [rows] the target's token at every row.
        layout: Rows of the requests.
        drafts: Trees of the batch.
        max_depth: T, longest path.
    """
    return tree_verify(sampled, layout.first_row, drafts.tokens, drafts.parents, drafts.valid, max_depth)


def invalidate(drafts: BatchDrafts, layout: RowLayout, invalid_row: Tensor) -> BatchDrafts:
    """Drop drafts that a grammar refuses (`invalid_row` [rows] bool); the walk then cannot reach the nodes below."""
    num_nodes = drafts.tokens.shape[1]
    local_N = torch.arange(1, num_nodes + 1, device=invalid_row.device)
    row_BN = layout.first_row[:, None] + torch.minimum(local_N, layout.num_drafts[:, None])
    return drafts._replace(valid=drafts.valid & ~invalid_row[row_BN])


def part_of(layout: RowLayout, reqs: slice, rows: slice) -> RowLayout:
    """The layout of a slice of the requests and of their rows, both counted from the first of them."""
    part = RowLayout(*(x[reqs] for x in layout[:3]), *(x[rows] for x in layout[3:]))
    if rows.start == 0:
        return part
    return part._replace(first_row=part.first_row - rows.start, req_of_row=part.req_of_row - reqs.start)


def emitting_rows(walk: Walk, layout: RowLayout) -> Tensor:  # [rows]
    """For local position i of a request the row that emitted its i-th token; for all other rows their own index."""
    max_depth = walk.path.shape[1]
    step_R = (layout.local_of_row - 1).clamp(0, max_depth - 1).long()
    node_R = walk.path[layout.req_of_row, step_R]
    own_R = torch.arange(layout.req_of_row.shape[0], device=node_R.device)
    emitted_R = (layout.local_of_row > 0) & (layout.local_of_row < walk.num_emitted[layout.req_of_row])
    return torch.where(emitted_R, layout.first_row[layout.req_of_row] + node_R + 1, own_R)
