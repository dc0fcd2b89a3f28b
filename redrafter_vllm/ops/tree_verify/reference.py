# SPDX-License-Identifier: Apache-2.0
"""Plain-torch walk through a draft tree."""

from typing import NamedTuple

import torch
from torch import Tensor


class Walk(NamedTuple):
    """The path of the target's tokens through each request's tree.

    `emitted` holds the tokens of the accepted path followed by the token that left the tree; slots from `num_emitted`
    on are 0. `path` holds the accepted nodes in order of depth, −1 beyond the last. `leaf` is the last accepted row of
    the request: 1 + node, or 0 for the root.
    """

    emitted: Tensor  # [B, 1 + N]
    path: Tensor  # [B, T]
    num_emitted: Tensor  # [B] int32, accepted nodes + 1
    leaf: Tensor  # [B] int64


def tree_verify(
    sampled: Tensor,  # [R]
    first_row: Tensor,  # [B]
    tokens: Tensor,  # [B, N]
    parents: Tensor,  # [B, N]
    valid: Tensor,  # [B, N] bool
    max_depth: int,
) -> Walk:
    """Descend from the root as long as the token that the target emits at a node is one of its children.

    Exact for greedy and for sampled targets alike: every emitted token is the target's own choice given the tokens
    before it; the tree only decides how many of them one pass yields.

    Args:
        sampled: The target's token at every row of the step.
        first_row: Row of each request's root; its node i has the row 1 + i higher.
        tokens: Drafted tokens.
        parents: Parent node, −1 under the root; a parent precedes its children.
        valid: Nodes that exist, have a row and may be accepted. Siblings that are both valid carry different tokens.
        max_depth: T, the longest path to follow.
    """
    num_reqs, num_nodes = tokens.shape
    emitted_BM = torch.zeros(num_reqs, 1 + num_nodes, dtype=sampled.dtype, device=sampled.device)
    path_BT = torch.full((num_reqs, max_depth), -1, dtype=torch.int64, device=sampled.device)
    node_B = torch.full((num_reqs,), -1, dtype=torch.int64, device=sampled.device)
    alive_B = torch.ones(num_reqs, dtype=torch.bool, device=sampled.device)
    num_emitted_B = torch.ones(num_reqs, dtype=torch.int32, device=sampled.device)

    token_B = sampled[first_row]
    emitted_BM[:, 0] = token_B
    for depth in range(min(max_depth, num_nodes)):
        child_BN = valid & (parents == node_B[:, None]) & (tokens == token_B[:, None]) & alive_B[:, None]
        alive_B = child_BN.any(dim=1)
        node_B = torch.where(alive_B, child_BN.to(torch.int8).argmax(dim=1), node_B)
        token_B = sampled[first_row + node_B + 1]
        path_BT[:, depth] = torch.where(alive_B, node_B, -1)
        emitted_BM[:, depth + 1] = torch.where(alive_B, token_B, 0)
        num_emitted_B += alive_B
    return Walk(emitted_BM, path_BT, num_emitted_B, node_B + 1)
