# SPDX-License-Identifier: Apache-2.0
"""The two ends of a drafting round: its inputs, gathered into buffers of fixed address, and its trees, stored."""

from torch import Tensor

from redrafter_vllm.ops.dispatch import use_kernel
from redrafter_vllm.ops.draft_inputs import StoredTrees
from redrafter_vllm.ops.draft_round import reference
from redrafter_vllm.ops.draft_round.reference import RoundInputs, RoundSource

__all__ = ["RoundInputs", "RoundSource", "round_inputs", "store_trees"]


def round_inputs(out: RoundInputs, source: RoundSource, node_budget: int, num_stored: int, padding_row: int) -> None:
    """See `reference.round_inputs`; on CUDA devices by one launch."""
    if use_kernel(out.context):
        from redrafter_vllm.ops.draft_round import kernel

        kernel.round_inputs(out, source, node_budget, num_stored, padding_row)
    else:
        reference.round_inputs(out, source, node_budget, num_stored, padding_row)


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
    """See `reference.store_trees`; on CUDA devices by one launch."""
    if use_kernel(tokens):
        from redrafter_vllm.ops.draft_round import kernel

        kernel.store_trees(stored, draft_tokens, tokens, parents, depths, num_nodes, rows, node_budget)
    else:
        reference.store_trees(stored, draft_tokens, tokens, parents, depths, num_nodes, rows, node_budget)
