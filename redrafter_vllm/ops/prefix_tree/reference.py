# SPDX-License-Identifier: Apache-2.0
"""Prefix tree of beams (arXiv 2403.09919, section 3.3) in plain torch: fixed shapes, no host synchronisation."""

import torch
from torch import Tensor
from torch.nn.functional import pad


def prefix_tree(
    tokens: Tensor, token_log_probs: Tensor, max_nodes: int, beam_limit: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The distinct prefixes of beams `tokens` [B, W, T] with conditional `token_log_probs` [B, W, T] as tree nodes.

    Returns tokens, parents, depths (int64) and cumulative log-probabilities (fp32), each [B, max_nodes], and
    num_nodes [B] (int64). Nodes are in order of descending log-probability, equal ones by depth, then by beam. A
    parent is never less probable than its child, so every prefix of the list is a tree, the most probable one of its
    size, and nodes beyond `max_nodes` are cut off. Parents are node indices, −1 under the root; a depth counts
    from 1 under the root. Padding is token 0, parent −1, depth 0, log-probability −inf.

    `beam_limit` [B] (int64, at least 1): only the first beams, this many, are used.
    """
    batch, width, length = tokens.shape
    if beam_limit is not None:
        # The first beam replaces those beyond the limit: copies of it add no nodes.
        beyond_BW1 = (torch.arange(width, device=tokens.device) >= beam_limit[:, None])[..., None]
        tokens = torch.where(beyond_BW1, tokens[:, :1], tokens)
        token_log_probs = torch.where(beyond_BW1, token_log_probs[:, :1], token_log_probs)
    # same[b, i, j, t]: beams i and j agree up to and including step t.
    same_BWWT = (tokens.unsqueeze(2) == tokens.unsqueeze(1)).cumprod(-1).bool()
    beam_W = torch.arange(width, device=tokens.device)
    owner_BWT = torch.where(same_BWWT, beam_W.view(1, 1, -1, 1), width).amin(2)
    is_copy_BWT = owner_BWT != beam_W.view(1, -1, 1)

    # A prefix takes the greatest of its beams' sums, and these never rise along a beam: neither a parallel scan's
    # rounding nor unequal copies can then place a child before its parent.
    sums_BWT = token_log_probs.float().cumsum(-1).nan_to_num(nan=-torch.inf).cummin(-1).values
    sums_BWT = torch.where(same_BWWT, sums_BWT.unsqueeze(1), -torch.inf).amax(2)

    # Flattened step by step, so that a stable sort leaves equal sums in order of depth, then of beam.
    def by_step(x_BWT: Tensor) -> Tensor:
        return x_BWT.transpose(1, 2).flatten(1)

    sums_BM, is_copy_BM = by_step(sums_BWT), by_step(is_copy_BWT)
    lowest = torch.finfo(torch.float32).min
    rank_key_BM = sums_BM.clamp(min=lowest).masked_fill(is_copy_BM, -torch.inf)
    order_BM = rank_key_BM.sort(dim=-1, descending=True, stable=True).indices
    place_BM = torch.empty_like(order_BM).scatter_(
        1, order_BM, torch.arange(width * length, device=tokens.device).expand_as(order_BM)
    )

    step_T = torch.arange(length, device=tokens.device)
    parent_BWT = pad(owner_BWT[..., :-1], (1, 0)) + (step_T - 1) * width
    parent_BM = place_BM.gather(1, by_step(parent_BWT.clamp(min=0)))
    depth_BM = by_step((step_T + 1).expand(batch, width, -1))
    parent_BM = torch.where(depth_BM == 1, -1, parent_BM)

    num_nodes = (~is_copy_BM).sum(1).clamp(max=max_nodes)
    is_padding_BN = torch.arange(max_nodes, device=tokens.device) >= num_nodes.unsqueeze(1)

    def packed(x_BM: Tensor, padding: float) -> Tensor:
        x_BM = x_BM.gather(1, order_BM)[:, :max_nodes]
        return pad(x_BM, (0, max_nodes - x_BM.shape[1])).masked_fill(is_padding_BN, padding)

    return (
        packed(by_step(tokens), 0),
        packed(parent_BM, -1),
        packed(depth_BM, 0),
        packed(sums_BM, -torch.inf),
        num_nodes,
    )


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
