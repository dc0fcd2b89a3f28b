# SPDX-License-Identifier: Apache-2.0
# mypy: disable-error-code="no-untyped-def"
"""A step's beams kept in one launch; each program copies a part of one beam's state, the first one all else."""

import triton
import triton.language as tl
from torch import Tensor

from redrafter_vllm.ops.beam_step.reference import BeamStep
from redrafter_vllm.ops.grow_beams.reference import BeamHistory
from redrafter_vllm.ops.variant import Variant

_WIDTH = 1024  # of a state, one program


def grow_beams(
    history: BeamHistory,
    chosen: BeamStep,
    state: Tensor,  # [B, W, H], or [B, 1, H] where all parents are 0
    step: int,
) -> Tensor:
    """See `reference.grow_beams`. `history` must be contiguous; other tensors are copied if they are not."""
    state = state.contiguous()
    batch, width = chosen.tokens.shape
    num_states, hidden_size = state.shape[1:]
    grown = state.new_empty(batch, width, hidden_size)
    if batch == 0:
        return grown
    block = min(triton.next_power_of_2(hidden_size), _WIDTH)
    _grow_kernel[(batch * width, triton.cdiv(hidden_size, block))](
        *history,
        *(x.contiguous() for x in chosen),
        state,
        grown,
        step,
        history.tokens.shape[1],
        width,
        num_states,
        hidden_size,
        BLOCK_H=block,
        num_warps=4,
    )
    return grown


@triton.jit(do_not_specialize=["step"])
def _grow_kernel(
    kept_scores_ptr,  # [B, T, W] fp32
    kept_parents_ptr,  # [B, T, W]
    kept_tokens_ptr,  # [B, T, W]
    scores_ptr,  # [B, W] fp32
    parents_ptr,  # [B, W]
    tokens_ptr,  # [B, W]
    state_ptr,  # [B, W or 1, H]
    grown_state_ptr,  # [B, W, H]
    step,
    length,
    width,
    num_states,
    hidden_size,
    BLOCK_H: tl.constexpr,
):
    beam = tl.program_id(0).to(tl.int64)
    parent = tl.load(parents_ptr + beam)
    column_H = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    inside_H = column_H < hidden_size
    source = (beam // width * num_states + parent) * hidden_size
    state_H = tl.load(state_ptr + source + column_H, mask=inside_H, other=0.0)
    tl.store(grown_state_ptr + beam * hidden_size + column_H, state_H, mask=inside_H)
    if tl.program_id(1) == 0:
        kept = (beam // width * length + step) * width + beam % width
        tl.store(kept_scores_ptr + kept, tl.load(scores_ptr + beam))
        tl.store(kept_parents_ptr + kept, parent)
        tl.store(kept_tokens_ptr + kept, tl.load(tokens_ptr + beam))


def variants() -> list[Variant]:
    """Compiled ahead of time in the tests: states of both widths of elements."""
    return [_variant("bf16", "*bf16"), _variant("fp32", "*fp32")]


def _variant(name: str, state: str) -> Variant:
    types = {argument: "*i64" for argument in _grow_kernel.arg_names if argument.endswith("_ptr")}
    types |= {argument: "*fp32" for argument in types if "scores" in argument}
    types |= {"state_ptr": state, "grown_state_ptr": state}
    types |= dict.fromkeys(("step", "length", "width", "num_states", "hidden_size"), "i32")
    return Variant(name, _grow_kernel, types, {"BLOCK_H": _WIDTH})
