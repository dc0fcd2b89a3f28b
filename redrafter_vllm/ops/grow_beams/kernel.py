# SPDX-License-Identifier: Apache-2.0
# mypy: disable-error-code="no-untyped-def"
"""New beams from their parents in one launch; each program copies one beam's history and a part of its state."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from redrafter_vllm.ops.grow_beams.reference import BeamHistory
from redrafter_vllm.ops.variant import Variant

_WIDTH = 1024  # of a state, one program


def grow_beams(
    history: BeamHistory,
    parents: Tensor,  # [B, W]
    tokens: Tensor,  # [B, W]
    log_probs: Tensor,  # [B, W] fp32
) -> BeamHistory:
    """See `reference.grow_beams`. Histories must be contiguous; other tensors are copied if they are not."""
    batch, width, length = history.tokens.shape
    state = history.state.contiguous()
    hidden_size = state.shape[2]
    grown = BeamHistory(
        history.tokens.new_empty(batch, width, length + 1),
        history.log_probs.new_empty(batch, width, length + 1),
        torch.empty_like(state),
    )
    if batch == 0:
        return grown
    block = min(triton.next_power_of_2(hidden_size), _WIDTH)
    _grow_kernel[(batch * width, triton.cdiv(hidden_size, block))](
        history.tokens,
        history.log_probs,
        state,
        parents.contiguous(),
        tokens.contiguous(),
        log_probs.contiguous(),
        *grown,
        width,
        length,
        hidden_size,
        BLOCK_T=triton.next_power_of_2(length + 1),
        BLOCK_H=block,
        num_warps=4,
    )
    return grown


@triton.jit(do_not_specialize=["length"])
def _grow_kernel(
    tokens_ptr,  # [B, W, t]
    log_probs_ptr,  # [B, W, t]
    state_ptr,  # [B, W, H]
    parents_ptr,  # [B, W]
    next_tokens_ptr,  # [B, W]
    next_log_probs_ptr,  # [B, W]
    grown_tokens_ptr,  # [B, W, t + 1]
    grown_log_probs_ptr,  # [B, W, t + 1]
    grown_state_ptr,  # [B, W, H]
    width,
    length,
    hidden_size,
    BLOCK_T: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    beam = tl.program_id(0).to(tl.int64)
    parent = beam // width * width + tl.load(parents_ptr + beam)
    column_H = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    inside_H = column_H < hidden_size
    state_H = tl.load(state_ptr + parent * hidden_size + column_H, mask=inside_H, other=0.0)
    tl.store(grown_state_ptr + beam * hidden_size + column_H, state_H, mask=inside_H)
    if tl.program_id(1) == 0:
        step_T = tl.arange(0, BLOCK_T)
        old_T = step_T < length
        token_T = tl.load(tokens_ptr + parent * length + step_T, mask=old_T, other=0)
        token_T = tl.where(old_T, token_T, tl.load(next_tokens_ptr + beam))
        log_prob_T = tl.load(log_probs_ptr + parent * length + step_T, mask=old_T, other=0.0)
        log_prob_T = tl.where(old_T, log_prob_T, tl.load(next_log_probs_ptr + beam))
        grown = beam * (length + 1) + step_T
        tl.store(grown_tokens_ptr + grown, token_T, mask=step_T <= length)
        tl.store(grown_log_probs_ptr + grown, log_prob_T, mask=step_T <= length)


def variants() -> list[Variant]:
    """Compiled ahead of time in the tests: the first and the longest history, both widths of states."""
    return [_variant("t1_bf16", 1, "*bf16"), _variant("t32_fp32", 32, "*fp32")]


def _variant(name: str, block_t: int, state: str) -> Variant:
    constants = {"BLOCK_T": block_t, "BLOCK_H": _WIDTH}
    types = {argument: "*i64" for argument in _grow_kernel.arg_names if argument.endswith("_ptr")}
    types |= {argument: "*fp32" for argument in types if "log_probs" in argument}
    types |= {"state_ptr": state, "grown_state_ptr": state}
    types |= dict.fromkeys(("width", "length", "hidden_size"), "i32")
    return Variant(name, _grow_kernel, types, constants)
