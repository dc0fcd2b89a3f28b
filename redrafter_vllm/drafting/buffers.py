# SPDX-License-Identifier: Apache-2.0
"""The draft trees of all running requests, kept on the device from the step that drafts to the one that verifies."""

import torch
from torch import Tensor

from redrafter_vllm.drafting.tree import DraftTree
from redrafter_vllm.ops.draft_inputs import BatchDrafts, RowLayout, StoredTrees, draft_inputs
from redrafter_vllm.ops.draft_round import RoundInputs, RoundSource, round_inputs, store_trees

__all__ = ["BatchDrafts", "DraftRows", "RoundBuffers", "RowLayout"]


class DraftRows:
    """Persistent rows, one per request slot of the runner (P slots), gathered through `idx_mapping`.

    A row's tree belongs to the request and the step that it was drafted for. Rows are reused, and a scheduler may
    schedule drafts for a request without a tree, so a row without a current tree has `num_nodes` 0.

    One extra row, `padding_row`, takes the trees of requests that only pad a batch.
    """

    def __init__(self, max_num_reqs: int, max_nodes: int, device: torch.device) -> None:
        self.padding_row = max_num_reqs
        shape = (max_num_reqs + 1, max_nodes)
        self.trees = StoredTrees(
            tokens=torch.zeros(shape, dtype=torch.int64, device=device),
            parents=torch.full(shape, -1, dtype=torch.int64, device=device),
            depths=torch.zeros(shape, dtype=torch.int64, device=device),
            ancestors=torch.zeros(*shape, max_nodes, dtype=torch.bool, device=device),
            num_nodes=torch.zeros(max_num_reqs + 1, dtype=torch.int64, device=device),
        )
        self.tokens, self.parents, self.depths, self.ancestors, self.num_nodes = self.trees
        self.beam_limit = torch.ones(max_num_reqs + 1, dtype=torch.int64, device=device)
        self.node_limit = torch.full((max_num_reqs + 1,), max_nodes, dtype=torch.int64, device=device)
        self._drafts, self._layout = _step_buffers(max_num_reqs, max_nodes, device)

    def open(self, row: int, *, beam_limit: int, node_limit: int) -> None:
        """Assign a row to a new request, whose trees stay within these limits."""
        self.num_nodes[row].zero_()
        self.beam_limit[row].fill_(beam_limit)
        self.node_limit[row].fill_(node_limit)

    def restrict_to_chain(self, row: int) -> None:
        """Limit the row's request to chains."""
        self.beam_limit[row].fill_(1)

    def clear(self, rows: Tensor) -> None:  # [B]
        """Drop the trees of these rows."""
        self.num_nodes.index_fill_(0, rows, 0)

    def write(self, rows: Tensor, tree: DraftTree, node_budget: Tensor, draft_tokens: Tensor) -> None:
        """Store the trees of a round.

        Args:
            rows: [B] row of each request.
            tree: [B, N] trees.
            node_budget: [B] nodes that the next step may verify; every prefix of a tree is a tree.
            draft_tokens: [B, N] gets the trees' tokens in batch order.
        """
        store_trees(self.trees, draft_tokens, tree.tokens, tree.parents, tree.depths, tree.num_nodes, rows, node_budget)

    def prepare(
        self,
        idx_mapping: Tensor,  # [B]
        cu_num_logits: Tensor,  # [B + 1]
        logits_indices: Tensor,  # [R]
        positions: Tensor,  # [tokens]
    ) -> tuple[BatchDrafts, RowLayout]:
        """Trees and rows of a verification step, and rotary `positions` in place; see `ops.draft_inputs`.

        Returns views of buffers of fixed address, which the next call overwrites.
        """
        num_reqs, num_rows = idx_mapping.shape[0], logits_indices.shape[0]
        drafts = BatchDrafts(*(buffer[:num_reqs] for buffer in self._drafts))
        layout = RowLayout(
            *(buffer[:num_reqs] for buffer in self._layout[:3]), *(buffer[:num_rows] for buffer in self._layout[3:])
        )
        draft_inputs(drafts, layout, positions, self.trees, idx_mapping, cu_num_logits, logits_indices)
        return drafts, layout


class RoundBuffers:
    """Inputs and draft tokens of a drafting round, at fixed addresses, for up to `max_num_reqs` requests."""

    def __init__(self, max_num_reqs: int, max_nodes: int, hidden_size: int, dtype: torch.dtype, device: torch.device):
        self.inputs = RoundInputs(
            context=torch.zeros(max_num_reqs, hidden_size, dtype=dtype, device=device),
            roots=torch.zeros(max_num_reqs, dtype=torch.int64, device=device),
            rows=torch.zeros(max_num_reqs, dtype=torch.int64, device=device),
            node_budget=torch.zeros(max_num_reqs, dtype=torch.int64, device=device),
            beam_limit=torch.ones(max_num_reqs, dtype=torch.int64, device=device),
        )
        self.draft_tokens = torch.zeros(max_num_reqs, max_nodes, dtype=torch.int64, device=device)

    def first(self, size: int) -> RoundInputs:
        """Inputs of the first `size` requests."""
        return RoundInputs(*(buffer[:size] for buffer in self.inputs))

    def fill(self, size: int, source: RoundSource, node_budget: int, num_stored: int, padding_row: int) -> None:
        """Gather a step's inputs for a round of `size` requests; see `ops.draft_round.round_inputs`."""
        round_inputs(self.first(size), source, node_budget, num_stored, padding_row)

    def idle(self, padding_row: int) -> None:
        """Set the inputs of a round for no request, whose trees go to the padding row, as when a graph is recorded."""
        for buffer in self.inputs:
            buffer.zero_()
        self.inputs.rows.fill_(padding_row)
        self.inputs.beam_limit.fill_(1)


def _step_buffers(max_num_reqs: int, max_nodes: int, device: torch.device) -> tuple[BatchDrafts, RowLayout]:
    def integers(*shape: int) -> Tensor:
        return torch.zeros(*shape, dtype=torch.int64, device=device)

    nodes, max_rows = (max_num_reqs, max_nodes), max_num_reqs * (1 + max_nodes)
    ancestors = torch.zeros(*nodes, max_nodes, dtype=torch.bool, device=device)
    valid = torch.zeros(nodes, dtype=torch.bool, device=device)
    drafts = BatchDrafts(integers(*nodes), integers(*nodes), integers(*nodes), ancestors, valid)
    layout = RowLayout(
        first_row=integers(max_num_reqs),
        num_drafts=integers(max_num_reqs),
        root_token=integers(max_num_reqs),
        req_of_row=integers(max_rows),
        local_of_row=integers(max_rows),
    )
    return drafts, layout
