# SPDX-License-Identifier: Apache-2.0
# mypy: disable-error-code="no-untyped-def"
"""Lookup and graft in one launch, one program per request."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from redrafter_vllm.ops.graft_copies.reference import LONGEST, SHORTEST, Texts
from redrafter_vllm.ops.variant import Variant

_BLOCK = 1024  # tokens of a text that are compared at once


def graft_copies(
    tokens: Tensor,
    parents: Tensor,
    log_probs: Tensor,
    texts: Texts,
    rows: Tensor,
    length: int,
    beam_limit: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `reference.graft_copies`. Tensors of the beams that are not contiguous are copied."""
    batch, steps, width = tokens.shape
    shape = (batch, length, width + 1)
    grafted = tokens.new_empty(shape), parents.new_empty(shape), log_probs.new_empty(shape)
    if batch == 0:
        return grafted
    _graft_kernel[(batch,)](
        tokens.contiguous(),
        parents.contiguous(),
        log_probs.contiguous(),
        texts.tokens,
        texts.lengths,
        rows,
        beam_limit,
        # By how much each beam of the step before was raised; written and read by the same program only.
        torch.empty(batch, width, dtype=torch.float32, device=tokens.device),
        *grafted,
        *texts.tokens.stride(),
        texts.lengths.stride(0),
        texts.tokens.shape[0],
        width,
        steps,
        length,
        SHORTEST=SHORTEST,
        LONGEST=LONGEST,
        BLOCK_L=_BLOCK,
        BLOCK_W=triton.next_power_of_2(width),
        num_warps=4,
    )
    return grafted


@triton.jit
def _graft_kernel(
    tokens_ptr,  # [B, S, W] int64
    parents_ptr,  # [B, S, W] int64
    log_probs_ptr,  # [B, S, W] fp32
    text_ptr,  # [R, L]
    lengths_ptr,  # [R]
    rows_ptr,  # [B] int64
    beam_limit_ptr,  # [B] int64; None: no tree is limited
    raised_ptr,  # [B, W] fp32
    grafted_tokens_ptr,  # [B, L, W + 1] int64
    grafted_parents_ptr,  # [B, L, W + 1] int64
    grafted_log_probs_ptr,  # [B, L, W + 1] fp32
    text_row_stride,
    text_stride,
    lengths_stride,
    num_rows,
    width,
    steps,
    length,
    SHORTEST: tl.constexpr,
    LONGEST: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    req = tl.program_id(0).to(tl.int64)
    row = tl.load(rows_ptr + req)
    has_text = row < num_rows
    if beam_limit_ptr is not None:
        has_text = has_text & (tl.load(beam_limit_ptr + req) > width)
    row = tl.where(has_text, row, 0)
    text_ptr += row * text_row_stride
    end = tl.where(has_text, tl.load(lengths_ptr + row * lengths_stride).to(tl.int32), 0) - 1

    # Of each place before the last token the number of equal tokens up to there; the most, and of those the last.
    best = tl.full((), -1, tl.int64)
    for start in range(0, end, BLOCK_L):
        place_L = start + tl.arange(0, BLOCK_L)
        is_equal_L = place_L < end
        matched_L = tl.zeros((BLOCK_L,), tl.int32)
        back = 0
        # Few places agree in more than some tokens, and most blocks are done after two.
        while (back < LONGEST) & (tl.max(is_equal_L.to(tl.int32)) > 0):
            last = tl.load(text_ptr + (end - back) * text_stride, mask=end >= back, other=-1)
            is_inside_L = is_equal_L & (place_L >= back)
            token_L = tl.load(text_ptr + (place_L - back) * text_stride, mask=is_inside_L, other=-2)
            is_equal_L = is_inside_L & (token_L == last)
            matched_L += is_equal_L.to(tl.int32)
            back += 1
        key_L = tl.where(place_L < end, matched_L.to(tl.int64) * (1 << 32) + place_L, -1)
        best = tl.maximum(best, tl.max(key_L))
    matched = tl.where(best >= 0, best >> 32, 0).to(tl.int32)
    found = (best & 0xFFFFFFFF).to(tl.int32)
    has_copy = matched >= SHORTEST
    period = tl.maximum(tl.where(has_copy, end - found, 1), 1)

    beam_W = tl.arange(0, BLOCK_W)
    inside_W = beam_W < width
    beams = req * steps * width
    grafted = req * length * (width + 1)
    raised_ptr += req * width
    tl.store(raised_ptr + beam_W, tl.zeros((BLOCK_W,), tl.float32), mask=inside_W)
    same = tl.full((), -1, tl.int64)
    for step in range(length):
        tl.debug_barrier()
        source = found + 1 + step % period
        copy = tl.load(text_ptr + source * text_stride, mask=has_copy, other=0).to(tl.int64)
        log_prob = tl.log((matched - 1).to(tl.float32) / (matched + step).to(tl.float32))
        drafted_W = inside_W & (step < steps)
        flat_W = beams + step * width + beam_W
        token_W = tl.load(tokens_ptr + flat_W, mask=drafted_W, other=0)
        parent_W = tl.load(parents_ptr + flat_W, mask=drafted_W, other=0)
        parent_W = tl.where(drafted_W, parent_W, beam_W)
        own_W = tl.load(log_probs_ptr + flat_W, mask=drafted_W, other=float("-inf"))
        above_W = tl.load(raised_ptr + tl.where(step > 0, parent_W, beam_W), mask=drafted_W, other=0.0)
        score_W = own_W + above_W
        exists_W = drafted_W & (own_W != float("-inf"))
        below_copy_W = exists_W & ((step == 0) | (parent_W == same))
        is_copy_W = below_copy_W & has_copy & (token_W == copy)
        # A beam whose probability is not a number says nothing.
        beside = tl.max(tl.where(is_copy_W & (score_W == score_W), score_W, float("-inf")))
        log_prob = tl.maximum(log_prob, beside)
        tl.debug_barrier()
        raised_W = tl.where(is_copy_W, log_prob, score_W) - own_W
        tl.store(raised_ptr + beam_W, tl.where(exists_W, raised_W, 0.0), mask=inside_W)
        same = tl.max(tl.where(is_copy_W, beam_W, -1)).to(tl.int64)

        out_W = grafted + step * (width + 1) + beam_W
        tl.store(grafted_tokens_ptr + out_W, token_W, mask=inside_W)
        tl.store(grafted_parents_ptr + out_W, tl.where(below_copy_W & (step > 0), width, parent_W), mask=inside_W)
        tl.store(grafted_log_probs_ptr + out_W, tl.where(is_copy_W, float("-inf"), score_W), mask=inside_W)
        last_beam = grafted + step * (width + 1) + width
        tl.store(grafted_tokens_ptr + last_beam, copy)
        tl.store(grafted_parents_ptr + last_beam, width)
        tl.store(grafted_log_probs_ptr + last_beam, tl.where(has_copy, log_prob, float("-inf")))


def variants() -> list[Variant]:
    """Compiled ahead of time in the tests: few and many beams."""
    return [_variant(f"w{width}", width) for width in (4, 64)]


def _variant(name: str, width: int) -> Variant:
    types = {argument: "*i64" for argument in _graft_kernel.arg_names if argument.endswith("_ptr")}
    types |= dict.fromkeys(("log_probs_ptr", "grafted_log_probs_ptr", "raised_ptr"), "*fp32")
    types |= dict.fromkeys(("text_ptr", "lengths_ptr"), "*i32")
    types |= dict.fromkeys(("text_row_stride", "num_rows", "width", "steps", "length"), "i32")
    constants = {
        "text_stride": 1,
        "lengths_stride": 1,
        "SHORTEST": SHORTEST,
        "LONGEST": LONGEST,
        "BLOCK_L": _BLOCK,
        "BLOCK_W": width,
    }
    return Variant(name, _graft_kernel, types, constants)
