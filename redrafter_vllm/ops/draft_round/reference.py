# SPDX-License-Identifier: Apache-2.0
"""Plain-torch gathering of a drafting round's inputs, and storing of its trees."""

from typing import NamedTuple

import torch
from torch import Tensor

from redrafter_vllm.ops.draft_inputs.reference import StoredTrees
from redrafter_vllm.ops.prefix_tree.reference import ancestor_mask


class RoundInputs(NamedTuple):
    """Inputs of a round, in buffers of fixed address, so that a CUDA graph of a round reads each step's inputs there.

    Z requests; those beyond the step's B pad the batch to the size that was recorded.
    """

    context: Tensor  # [Z, H] the target's hidden state at the last accepted token
    roots: Tensor  # [Z] int64, the token that the target sampled there
    rows: Tensor  # [Z] int64, persistent row that gets the tree
    node_budget: Tensor  # [Z] int64, nodes that the next step may verify
    beam_limit: Tensor  # [Z] int64, beams that its tree may use


class RoundSource(NamedTuple):
    """The results of a step from which a round's inputs are gathered."""

    hidden: Tensor  # [tokens, H]
    root_token: Tensor  # [B] token of each request's root, or of its last one where nothing was drafted
    leaf: Tensor | None  # [B] how many tokens after it the last accepted token is; None is 0
    idx_mapping: Tensor  # [B] persistent row of each request
    last_sampled: Tensor  # [P, 1] by persistent row
    num_sampled: Tensor  # [B]
    beam_limit: Tensor  # [P] int64, by persistent row, at least 1
    node_limit: Tensor  # [P] int64, by persistent row


def round_inputs(out: RoundInputs, source: RoundSource, node_budget: int, num_stored: int, padding_row: int) -> None:
    """Gather the inputs of a round.

    Args:
        out: Written, all Z rows. Padding has context 0, root 0, one beam, node budget 0, and the padding row.
        source: Of the step's B requests, B ≤ Z.
        node_budget: The scheduler's limit of nodes per request; a request may have a lower one. A request that has not
            sampled a token to draft from gets 0.
        num_stored: The trees of the first `num_stored` requests are kept: B, or 0 in a dummy run, whose requests own no
            row.
        padding_row: The row for all other trees.
    """
    num_reqs = source.idx_mapping.shape[0]
    token_B = source.root_token if source.leaf is None else source.root_token + source.leaf
    for buffer in out:
        buffer[num_reqs:].zero_()
    out.context[:num_reqs].copy_(source.hidden[token_B])
    out.roots[:num_reqs].copy_(source.last_sampled[source.idx_mapping, 0])
    out.rows[:num_stored].copy_(source.idx_mapping[:num_stored])
    out.rows[num_stored:].fill_(padding_row)
    out.node_budget[:num_reqs].copy_(
        (source.num_sampled > 0) * source.node_limit[source.idx_mapping].clamp(max=node_budget)
    )
    out.beam_limit.fill_(1)
    out.beam_limit[:num_reqs].copy_(source.beam_limit[source.idx_mapping])


def store_trees(
    stored: StoredTrees,
    draft_tokens: Tensor,  # [B, N]
    tokens: Tensor,  # [B, N]
    parents: Tensor,  # [B, N]
    depths: Tensor,  # [B, N]
    num_nodes: Tensor,  # [B]
    rows: Tensor,  # [B]
    node_budget: Tensor,  # [B]
) -> None:
    """Store the trees of a round in their requests' persistent rows, and their tokens in batch order.

    Args:
        stored: Written, at `rows`. Several requests may have the same row if it is never read.
        draft_tokens: Written, all of it.
        tokens, parents, depths, num_nodes: The trees.
        rows: Persistent row of each request.
        node_budget: The largest number of nodes to keep; every prefix of a tree is a tree.
    """
    draft_tokens.copy_(tokens)
    stored.tokens.index_copy_(0, rows, tokens)
    stored.parents.index_copy_(0, rows, parents)
    stored.depths.index_copy_(0, rows, depths)
    stored.ancestors.index_copy_(0, rows, ancestor_mask(parents, num_nodes))
    stored.num_nodes.index_copy_(0, rows, torch.minimum(num_nodes, node_budget))
