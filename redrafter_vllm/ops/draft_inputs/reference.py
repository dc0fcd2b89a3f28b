# SPDX-License-Identifier: Apache-2.0
"""Plain-torch preparation of a verification step from the stored trees."""

from typing import NamedTuple

import torch
from torch import Tensor


class StoredTrees(NamedTuple):
    """The trees of all requests between two steps, by persistent row (P of them)."""

    tokens: Tensor  # [P, N] int64
    parents: Tensor  # [P, N] int64
    depths: Tensor  # [P, N] int64
    ancestors: Tensor  # [P, N, N] bool
    num_nodes: Tensor  # [P] int64


class BatchDrafts(NamedTuple):
    """Drafts of the requests of one step, in batch order.

    `ancestors[b, i, j]`: node i sees node j, its ancestor or itself. A slot without a valid node sees itself only: its
    result is not used, but attention needs at least one key.
    """

    tokens: Tensor  # [B, N] int64
    parents: Tensor  # [B, N] int64
    depths: Tensor  # [B, N] int64
    ancestors: Tensor  # [B, N, N] bool
    valid: Tensor  # [B, N] bool


class RowLayout(NamedTuple):
    """The logits rows of a step by request: each request has its root's row, then one per draft."""

    first_row: Tensor  # [B] int64, the root's row
    num_drafts: Tensor  # [B] int64, scheduled drafts
    root_token: Tensor  # [B] int64, the root's index among the step's tokens; its drafts follow it
    req_of_row: Tensor  # [R] int64, batch index
    local_of_row: Tensor  # [R] int64, 0 for the root, 1 + node for a draft


def draft_inputs(
    drafts: BatchDrafts,
    layout: RowLayout,
    positions: Tensor,  # [tokens]
    stored: StoredTrees,
    idx_mapping: Tensor,  # [B]
    cu_num_logits: Tensor,  # [B + 1]
    logits_indices: Tensor,  # [R]
) -> None:
    """Look up the batch's trees and give their nodes rotary positions.

    A node's rotary position is the root's plus its depth, in whatever slot it is stored. `positions` comes with storage
    positions, from which the slots have already been derived. Slots without a valid node keep theirs: their results are
    not used. A second call changes nothing.

    Args:
        drafts: Written; `valid` is False for nodes that were not drafted or not scheduled.
        layout: Written.
        positions: Overwritten in place at the drafts' tokens.
        stored: The trees by persistent row.
        idx_mapping: Persistent row of each request.
        cu_num_logits: First row of each request, and the number of rows R.
        logits_indices: Token of each row; those of a request are consecutive.
    """
    num_nodes = drafts.tokens.shape[1]
    cu_num_logits = cu_num_logits.long()
    first_row_B = cu_num_logits[:-1]
    layout.first_row.copy_(first_row_B)
    layout.num_drafts.copy_(cu_num_logits[1:] - first_row_B - 1)
    layout.root_token.copy_(logits_indices[first_row_B])
    row_R = torch.arange(logits_indices.shape[0], device=positions.device)
    layout.req_of_row.copy_(torch.searchsorted(cu_num_logits[1:], row_R, right=True))
    layout.local_of_row.copy_(row_R - first_row_B[layout.req_of_row])

    node_N = torch.arange(num_nodes, device=positions.device)
    num_valid_B = torch.minimum(stored.num_nodes[idx_mapping], layout.num_drafts)
    drafts.valid.copy_(node_N < num_valid_B[:, None])
    drafts.tokens.copy_(stored.tokens[idx_mapping])
    drafts.parents.copy_(stored.parents[idx_mapping])
    drafts.depths.copy_(stored.depths[idx_mapping])
    itself_NN = node_N[:, None] == node_N
    drafts.ancestors.copy_((stored.ancestors[idx_mapping] & drafts.valid[:, :, None]) | itself_NN)

    node_R = (layout.local_of_row - 1).clamp(min=0)
    is_node_R = drafts.valid[layout.req_of_row, node_R] & (layout.local_of_row > 0)
    behind_R = torch.where(is_node_R, drafts.depths[layout.req_of_row, node_R], layout.local_of_row)
    positions[logits_indices] = positions[layout.root_token[layout.req_of_row]] + behind_R
