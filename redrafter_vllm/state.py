# SPDX-License-Identifier: Apache-2.0
"""The drafts of every running request, kept on the device between the step that draws and the step that verifies."""

from typing import NamedTuple

import torch
from torch import Tensor

from redrafter_vllm.tree import DraftTree


class BatchDrafts(NamedTuple):
    """Drafts of the requests of one step, in batch order."""

    tokens: Tensor  # [B, N]
    parents: Tensor  # [B, N]
    depths: Tensor  # [B, N]
    ancestors: Tensor  # [B, N, N] bool
    valid: Tensor  # [B, N] bool


class DraftRows:
    """Persistent rows, one per request slot of the runner (R slots), gathered through `idx_mapping`.

    A row's tree belongs to the request and the step that it was drawn for. Rows are reused, and a scheduler may ask
    for drafts of a request that none were drawn for, so a row without a current tree says so by `num_nodes` 0.
    """

    def __init__(self, max_num_reqs: int, max_nodes: int, device: torch.device) -> None:
        self.max_nodes = max_nodes
        shape = (max_num_reqs, max_nodes)
        self.tokens = torch.zeros(shape, dtype=torch.int64, device=device)
        self.parents = torch.full(shape, -1, dtype=torch.int64, device=device)
        self.depths = torch.zeros(shape, dtype=torch.int64, device=device)
        self.ancestors = torch.zeros(*shape, max_nodes, dtype=torch.bool, device=device)
        self.num_nodes = torch.zeros(max_num_reqs, dtype=torch.int64, device=device)
        self.chain_only = torch.zeros(max_num_reqs, dtype=torch.bool, device=device)
        self._node = torch.arange(max_nodes, device=device)

    def open(self, row: int, *, chain_only: bool) -> None:
        """Hand a row to a request that nothing has been drafted for yet."""
        self.num_nodes[row].zero_()
        self.chain_only[row].fill_(chain_only)

    def restrict_to_chain(self, row: int) -> None:
        """Draw chains for the request that the row was opened for."""
        self.chain_only[row].fill_(True)

    def clear(self, rows: Tensor) -> None:  # [B]
        """Drop the trees of these rows."""
        self.num_nodes.index_fill_(0, rows, 0)

    def write(self, rows: Tensor, tree: DraftTree, drawn: Tensor, limit: int) -> None:
        """Keep the trees just drawn.

        Args:
            rows: [B] row of each request.
            tree: [B, N] trees.
            drawn: [B] bool, false for requests that have not sampled a token to draft from.
            limit: The scheduler takes at most this many nodes; every prefix of a tree is a tree.
        """
        self.tokens[rows] = tree.tokens
        self.parents[rows] = tree.parents.to(self.parents.dtype)
        self.depths[rows] = tree.depths.to(self.depths.dtype)
        self.ancestors[rows] = tree.ancestor_mask()
        self.num_nodes[rows] = torch.where(drawn, tree.num_nodes.clamp(max=limit), 0).to(self.num_nodes.dtype)

    def gather(self, rows: Tensor, num_scheduled: Tensor) -> BatchDrafts:
        """Drafts of a batch; `valid` leaves out what was not drawn or not scheduled (`num_scheduled` [B])."""
        num_valid = torch.minimum(self.num_nodes[rows], num_scheduled)
        return BatchDrafts(
            tokens=self.tokens[rows],
            parents=self.parents[rows],
            depths=self.depths[rows],
            ancestors=self.ancestors[rows],
            valid=self._node < num_valid[:, None],
        )
