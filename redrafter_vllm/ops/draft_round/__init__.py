# SPDX-License-Identifier: Apache-2.0
"""The two ends of a drafting round: its inputs, gathered into buffers of fixed address, and its trees, stored."""

from redrafter_vllm.ops.dispatch import dispatch
from redrafter_vllm.ops.draft_round import reference
from redrafter_vllm.ops.draft_round.reference import RoundInputs, RoundSource

__all__ = ["RoundInputs", "RoundSource", "round_inputs", "store_trees"]

round_inputs = dispatch(reference.round_inputs)
store_trees = dispatch(reference.store_trees)
