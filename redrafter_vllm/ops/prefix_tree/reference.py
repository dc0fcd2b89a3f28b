# SPDX-License-Identifier: Apache-2.0
"""Prefix tree of beams (arXiv 2403.09919, section 3.3) in plain torch: fixed shapes, no host synchronisation."""

import torch
from torch import Tensor
from torch.nn.functional import pad


def prefix_tree(
    tokens: Tensor, parents: Tensor, scores: Tensor, max_nodes: int, beam_limit: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The beams that a search kept at every step as the nodes of a tree.

    `tokens`, `parents` and `scores` [B, T, W] are the last token of each beam, the beam of the step before that it
    continues, and what it is ranked by, the logarithm of a probability. The beams of a step must be distinct: each is
    one node, except one of score −inf, which is none.

    Returns tokens, parents, depths (int64), scores (fp32) and beams (int64), each [B, max_nodes], and num_nodes [B]
    (int64). Nodes are in order of descending score, equal ones by depth, then by beam. A parent never has a lower score
    than its child, so every prefix of the list is a tree, the most probable one of its size, and nodes beyond
    `max_nodes` are cut off. Parents are node indices, −1 under the root; a depth counts from 1 under the root; a node's
    beam is its index among all T·W beams. Padding is token 0, parent −1, depth 0, score −inf, beam 0.

    `beam_limit` [B] (int64, at least 1): where it is below W, the tree holds only the best beams of the last step,
    this many, and their prefixes.
    """
    length, width = tokens.shape[1:]
    score_BM = _falling(scores, parents).flatten(1)
    is_node_BM = score_BM > -torch.inf
    if beam_limit is not None:
        is_node_BM &= _of_the_best(parents, beam_limit).flatten(1)

    # Flattened step by step, so that a stable sort leaves equal scores in order of depth, then of beam.
    order_BM = score_BM.masked_fill(~is_node_BM, -torch.inf).sort(dim=-1, descending=True, stable=True).indices
    flat_M = torch.arange(length * width, device=tokens.device)
    place_BM = torch.empty_like(order_BM).scatter_(1, order_BM, flat_M.expand_as(order_BM))
    depth_M = flat_M // width + 1
    parent_BM = parents.flatten(1) + (depth_M - 2) * width
    parent_BM = torch.where(depth_M == 1, -1, place_BM.gather(1, parent_BM.clamp(min=0)))

    num_nodes = is_node_BM.sum(1).clamp(max=max_nodes)
    is_padding_BN = torch.arange(max_nodes, device=tokens.device) >= num_nodes.unsqueeze(1)

    def packed(x_BM: Tensor, padding: float) -> Tensor:
        x_BM = x_BM.gather(1, order_BM)[:, :max_nodes]
        return pad(x_BM, (0, max_nodes - x_BM.shape[1])).masked_fill(is_padding_BN, padding)

    return (
        packed(tokens.flatten(1), 0),
        packed(parent_BM, -1),
        packed(depth_M.expand_as(parent_BM), 0),
        packed(score_BM, -torch.inf),
        packed(flat_M.expand_as(parent_BM), 0),
        num_nodes,
    )


def _falling(scores: Tensor, parents: Tensor) -> Tensor:
    """`scores` [B, T, W], lowered where one is above its parent's, so that a parent never ranks lower.

    They are finite or −inf.
    """
    scores = scores.nan_to_num(nan=torch.finfo(torch.float32).min, neginf=-torch.inf)
    falling = [scores[:, 0]]
    for step in range(1, scores.shape[1]):
        falling.append(torch.minimum(scores[:, step], falling[-1].gather(1, parents[:, step])))
    return torch.stack(falling, 1)


def _of_the_best(parents: Tensor, beam_limit: Tensor) -> Tensor:
    """Whether a beam [B, T, W] is among the last step's first `beam_limit` or a prefix of one; all are from W on."""
    width = parents.shape[2]
    limit_B1 = beam_limit[:, None]
    chosen = [torch.arange(width, device=parents.device) < limit_B1]
    for step in range(parents.shape[1] - 1, 0, -1):
        children_BW = torch.zeros_like(parents[:, step]).scatter_add_(1, parents[:, step], chosen[0].long())
        chosen.insert(0, children_BW > 0)
    return torch.stack(chosen, 1) | (limit_B1 >= width)[..., None]


def ancestor_mask(parents: Tensor, num_nodes: Tensor) -> Tensor:
    """[B, N, N] bool: entry [b, i, j] says that j is i or an ancestor of i; False wherever i or j is padding.

    parents: [B, N], −1 under the root; num_nodes: [B], at and beyond which nodes count as padding.
    """
    capacity = parents.shape[1]
    is_node_BN = torch.arange(capacity, device=parents.device) < num_nodes.unsqueeze(1)
    mask_BNN = torch.diag_embed(is_node_BN)
    # Paths end in one more row, all False, which is its own parent.
    mask_BRN = pad(mask_BNN, (0, 0, 0, 1))
    jump_BR = pad(torch.where(is_node_BN & (parents >= 0), parents, capacity), (0, 1), value=capacity)
    # Each iteration doubles the length of the path that a row covers.
    for _ in range((capacity - 1).bit_length()):
        mask_BRN = mask_BRN | mask_BRN.gather(1, jump_BR.unsqueeze(-1).expand_as(mask_BRN))
        jump_BR = jump_BR.gather(1, jump_BR)
    return mask_BRN[:, :capacity]
