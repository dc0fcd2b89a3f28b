# SPDX-License-Identifier: Apache-2.0
# mypy: disable-error-code="no-untyped-def"
"""Estimates of nodes: two launches in a drafting round and one after a verification."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from redrafter_vllm.ops.survival import reference
from redrafter_vllm.ops.survival.reference import NUM_SUMS, Estimates
from redrafter_vllm.ops.variant import Variant

_MAX_LOG_ODDS = tl.constexpr(reference.MAX_LOG_ODDS)
_MOST_SAVED = tl.constexpr(reference.MOST_SAVED)
_RATE = tl.constexpr(reference.OFFSET_RATE)
_DECAY = tl.constexpr(reference.OFFSET_DECAY)
_NUM_SUMS = tl.constexpr(NUM_SUMS)


def rank_beams(estimates: Estimates, log_probs: Tensor, parents: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """See `reference.rank_beams`; all must be contiguous."""
    batch, length, width = log_probs.shape
    log_odds, log_survival = torch.empty_like(log_probs), torch.empty_like(log_probs)
    if batch:
        _rank_kernel[(batch, length)](
            log_probs,
            parents,
            rows,
            estimates.slope,
            estimates.intercepts,
            estimates.offsets,
            log_odds,
            log_survival,
            length,
            width,
            len(estimates.intercepts),
            COPIES=estimates.copies,
            BLOCK_W=triton.next_power_of_2(width),
            num_warps=1,
        )
    return log_odds, log_survival


def keep_tree(
    estimates: Estimates,
    drawn: Tensor,  # [B, T, W]
    beams: Tensor,  # [B, N]
    log_survival: Tensor,  # [B, N]
    num_nodes: Tensor,  # [B]
    node_budget: Tensor,  # [B]
    rows: Tensor,  # [B]
    confidences: Tensor,  # [B, N]
) -> None:
    """See `reference.keep_tree`; all must be contiguous."""
    batch, capacity = beams.shape
    if batch:
        _keep_kernel[(batch,)](
            drawn,
            beams,
            log_survival,
            num_nodes,
            node_budget,
            rows,
            estimates.offsets,
            estimates.kinds,
            estimates.log_odds,
            estimates.log_survival,
            confidences,
            *drawn.shape[1:],
            capacity,
            len(estimates.intercepts),
            COPIES=estimates.copies,
            BLOCK_N=triton.next_power_of_2(capacity),
            num_warps=1,
        )


def grade_nodes(
    estimates: Estimates,
    rows: Tensor,  # [B]
    parents: Tensor,  # [B, N]
    valid: Tensor,  # [B, N] bool
    path: Tensor,  # [B, T]
) -> None:
    """See `reference.grade_nodes`; all must be contiguous."""
    batch, capacity = parents.shape
    if batch:
        _grade_kernel[(batch,)](
            rows,
            parents,
            valid.view(torch.uint8),
            path,
            estimates.kinds,
            estimates.log_odds,
            estimates.log_survival,
            estimates.offsets,
            estimates.sums,
            capacity,
            path.shape[1],
            estimates.sums.shape[2],
            BLOCK_N=triton.next_power_of_2(capacity),
            num_warps=1,
        )


@triton.jit
def _log_odds(difference):
    """log(p / (1 − p)) of log p, cut; without the loss of digits of 1 − exp(log p) where p is near 1."""
    log_p = tl.minimum(difference, 0.0)
    y = -log_p
    near_one = y * (1.0 - y * (0.5 - y * (1.0 / 6 - y * (1.0 / 24 - y * (1.0 / 120)))))
    rest = tl.where(y < 0.25, near_one, 1.0 - tl.exp(log_p))
    x = log_p - tl.log(rest)
    x = tl.where(rest > 0.0, x, _MAX_LOG_ODDS)
    # Not a number where no beam could be continued; a minimum hides that on a GPU.
    x = tl.where(difference == difference, x, -_MAX_LOG_ODDS)
    return tl.minimum(tl.maximum(x, -_MAX_LOG_ODDS), _MAX_LOG_ODDS)


@triton.jit
def _rank_kernel(
    log_probs_ptr,  # [B, T, W]
    parents_ptr,  # [B, T, W]
    rows_ptr,  # [B]
    slope_ptr,  # [1]
    intercepts_ptr,  # [K]
    offsets_ptr,  # [P]
    log_odds_ptr,  # [B, T, W]
    log_survival_ptr,  # [B, T, W]
    length,
    width,
    num_kinds,
    COPIES: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """The beams of one step of one request, each climbing to its root: no program reads what another writes."""
    req, step = tl.program_id(0).to(tl.int64), tl.program_id(1)
    beam_W = tl.arange(0, BLOCK_W)
    inside_W = beam_W < width
    first = req * length * width
    out_W = first + step * width + beam_W
    slope = tl.load(slope_ptr)
    offset = tl.load(offsets_ptr + tl.load(rows_ptr + req)) * _DECAY
    here_W = beam_W
    survival_W = tl.zeros([BLOCK_W], tl.float32)
    exists_W = inside_W
    for climbed in range(step + 1):
        depth = step - climbed
        at_W = first + depth * width + here_W
        log_prob_W = tl.load(log_probs_ptr + at_W, mask=inside_W, other=0.0)
        exists_W &= log_prob_W != float("-inf")
        is_copy_W = (here_W == width - 1) & COPIES
        here_W = tl.load(parents_ptr + at_W, mask=inside_W, other=0).to(tl.int32)
        has_above_W = inside_W & (depth > 0)
        above_W = tl.load(log_probs_ptr + first + (depth - 1) * width + here_W, mask=has_above_W, other=0.0)
        x_W = _log_odds(log_prob_W - above_W)
        if climbed == 0:
            tl.store(log_odds_ptr + out_W, x_W, mask=inside_W)
        kind_W = tl.where(is_copy_W, num_kinds - 1, tl.minimum(depth, num_kinds - 1 - COPIES))
        score_W = tl.where(is_copy_W, x_W, slope * x_W) + tl.load(intercepts_ptr + kind_W) + offset
        survival_W += tl.minimum(score_W, 0.0) - tl.log(1.0 + tl.exp(-tl.abs(score_W)))
    tl.store(log_survival_ptr + out_W, tl.where(exists_W, survival_W, float("-inf")), mask=inside_W)


@triton.jit
def _keep_kernel(
    drawn_ptr,  # [B, T, W]
    beams_ptr,  # [B, N]
    survival_ptr,  # [B, N]
    num_nodes_ptr,  # [B]
    node_budget_ptr,  # [B]
    rows_ptr,  # [B]
    offsets_ptr,  # [P]
    kinds_ptr,  # [P, N]
    kept_log_odds_ptr,  # [P, N]
    kept_survival_ptr,  # [P, N]
    confidences_ptr,  # [B, N]
    length,
    width,
    capacity,
    num_kinds,
    COPIES: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    req = tl.program_id(0).to(tl.int64)
    row = tl.load(rows_ptr + req)
    node_N = tl.arange(0, BLOCK_N)
    inside_N = node_N < capacity
    from_N, to_N = req * capacity + node_N, row * capacity + node_N
    beam_N = tl.load(beams_ptr + from_N, mask=inside_N, other=0)
    x_N = tl.load(drawn_ptr + req * length * width + beam_N, mask=inside_N, other=0.0)
    is_copy_N = (beam_N % width == width - 1) & COPIES
    kind_N = tl.where(is_copy_N, num_kinds - 1, tl.minimum(beam_N // width, num_kinds - 1 - COPIES))
    x_N = tl.where(is_copy_N, 0.0, x_N)
    tl.store(kinds_ptr + to_N, kind_N, mask=inside_N)
    survival_N = tl.load(survival_ptr + from_N, mask=inside_N, other=-float("inf"))
    tl.store(kept_log_odds_ptr + to_N, x_N, mask=inside_N)
    tl.store(kept_survival_ptr + to_N, survival_N, mask=inside_N)

    count = tl.minimum(tl.load(num_nodes_ptr + req), tl.load(node_budget_ptr + req))
    is_node_N = node_N < count
    has_before_N = is_node_N & (node_N > 0)
    own_N = tl.where(is_node_N, tl.exp(survival_N), 0.0)
    before_N = tl.exp(tl.load(survival_ptr + from_N - 1, mask=has_before_N, other=-float("inf")))
    tokens_N = 1.0 + tl.cumsum(own_N, axis=0)
    above_N = tokens_N - own_N
    saved_N = own_N / (tokens_N * above_N)
    saved_before_N = tl.where(has_before_N, before_N / (above_N * (above_N - before_N)), _MOST_SAVED)
    ratio_N = tl.where(saved_before_N > 0.0, tl.minimum(saved_N / saved_before_N, 1.0), 0.0)
    tl.store(confidences_ptr + from_N, ratio_N, mask=inside_N)
    tl.store(offsets_ptr + row, tl.load(offsets_ptr + row) * _DECAY)


@triton.jit
def _grade_kernel(
    rows_ptr,  # [B]
    parents_ptr,  # [B, N]
    valid_ptr,  # [B, N] uint8
    path_ptr,  # [B, T]
    kinds_ptr,  # [P, N]
    log_odds_ptr,  # [P, N]
    log_survival_ptr,  # [P, N]
    offsets_ptr,  # [P]
    sums_ptr,  # [P, NUM_SUMS, K]
    capacity,
    length,
    num_kinds,
    BLOCK_N: tl.constexpr,
):
    req = tl.program_id(0).to(tl.int64)
    row = tl.load(rows_ptr + req)
    node_N = tl.arange(0, BLOCK_N)
    inside_N = node_N < capacity
    parent_N = tl.load(parents_ptr + req * capacity + node_N, mask=inside_N, other=-1)
    valid_N = tl.load(valid_ptr + req * capacity + node_N, mask=inside_N, other=0) != 0
    is_accepted_N = node_N < 0
    is_below_N = parent_N < 0
    for step in range(length):
        accepted = tl.load(path_ptr + req * length + step)
        is_accepted_N = is_accepted_N | (node_N == accepted)
        is_below_N = is_below_N | (parent_N == accepted)
    is_graded_N = valid_N & is_below_N

    survival_N = tl.load(log_survival_ptr + row * capacity + node_N, mask=inside_N, other=0.0)
    has_parent_N = inside_N & (parent_N >= 0)
    above_N = tl.load(log_survival_ptr + row * capacity + parent_N, mask=has_parent_N, other=0.0)
    probability_N = tl.exp(survival_N - above_N)
    probability_N = tl.where(is_graded_N & (probability_N == probability_N), probability_N, 0.0)
    weight_N = probability_N * (1.0 - probability_N)
    residual_N = tl.where(is_accepted_N & is_graded_N, 1.0, 0.0) - probability_N
    tl.store(offsets_ptr + row, tl.load(offsets_ptr + row) + _RATE * tl.sum(residual_N, axis=0))

    x_N = tl.load(log_odds_ptr + row * capacity + node_N, mask=inside_N, other=0.0)
    kind_N = tl.load(kinds_ptr + row * capacity + node_N, mask=inside_N, other=-1)
    own_ptr = sums_ptr + row * _NUM_SUMS * num_kinds
    for kind in range(num_kinds):
        is_here_N = kind_N == kind
        own_weight_N = tl.where(is_here_N, weight_N, 0.0)
        own_residual_N = tl.where(is_here_N, residual_N, 0.0)
        _add(own_ptr + kind, tl.sum(own_weight_N * x_N * x_N, axis=0))
        _add(own_ptr + num_kinds + kind, tl.sum(own_weight_N * x_N, axis=0))
        _add(own_ptr + 2 * num_kinds + kind, tl.sum(own_weight_N, axis=0))
        _add(own_ptr + 3 * num_kinds + kind, tl.sum(own_residual_N * x_N, axis=0))
        _add(own_ptr + 4 * num_kinds + kind, tl.sum(own_residual_N, axis=0))
        _add(own_ptr + 5 * num_kinds + kind, tl.sum(tl.where(is_here_N & is_graded_N, 1.0, 0.0), axis=0))


@triton.jit
def _add(place_ptr, value):
    tl.store(place_ptr, tl.load(place_ptr) + value)


def variants() -> list[Variant]:
    """Compiled ahead of time in the tests: few and many beams, small and full trees."""
    return [
        _variant("rank_w4", _rank_kernel, {"COPIES": False, "BLOCK_W": 4}),
        _variant("rank_w64", _rank_kernel, {"COPIES": True, "BLOCK_W": 64}),
        _variant("keep_n16", _keep_kernel, {"COPIES": True, "BLOCK_N": 16}),
        _variant("keep_n128", _keep_kernel, {"COPIES": False, "BLOCK_N": 128}),
        _variant("grade_n16", _grade_kernel, {"BLOCK_N": 16}),
        _variant("grade_n128", _grade_kernel, {"BLOCK_N": 128}),
    ]


def _variant(name: str, kernel: triton.JITFunction, constants: dict[str, int | bool]) -> Variant:
    integers = ("parents_ptr", "rows_ptr", "beams_ptr", "num_nodes_ptr", "node_budget_ptr", "kinds_ptr", "path_ptr")
    types = {
        argument: ("*i64" if argument in integers else "*fp32") if argument.endswith("_ptr") else "i32"
        for argument in kernel.arg_names
        if argument not in constants
    }
    types |= {"valid_ptr": "*u8"} if "valid_ptr" in types else {}
    return Variant(name, kernel, types, constants, num_warps=1)
