# SPDX-License-Identifier: Apache-2.0
"""Before and after a drafting round: gathers its inputs into buffers of fixed address, and stores its trees."""

from redrafter_vllm.ops.dispatch import dispatch
from redrafter_vllm.ops.draft_round import reference
from redrafter_vllm.ops.draft_round.reference import RoundInputs, RoundSource

__all__ = ["RoundInputs", "RoundSource", "round_inputs", "store_trees"]

round_inputs = dispatch(reference.round_inputs)
store_trees = dispatch(reference.store_trees)
