# SPDX-License-Identifier: Apache-2.0
# mypy: disable-error-code="no-untyped-def"
"""The beam step in Triton: log-softmax and top-k over the vocabulary, reading the logits once.

Three launches: the first writes the K best logits of each tile of the vocabulary and the tile's share of the softmax's
sum; the second reduces the tiles of a beam to its W best continuations; the third ranks the W·W continuations of a
request. K is the larger of W and `logits_top_k`. Values are ranked as 64-bit keys, the value above and the complement
of its index below: keys are unique, and of equal values the one with the lower index has the greater key.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from redrafter_vllm.ops.beam_step.reference import BeamStep
from redrafter_vllm.ops.variant import Variant

MAX_CANDIDATES = 64
MAX_VOCABULARY = 2**18
_TILE = 4096
_LOWEST_KEY = tl.constexpr(-(2**63))


def supports(
    logits: Tensor,  # [B, W, V]
    scores: Tensor | None = None,
    logits_top_k: int | None = None,
    id_offsets: Tensor | None = None,
) -> bool:
    """Whether the kernels take these sizes: up to 64 beams and kept logits, a vocabulary of up to 262,144."""
    _, beam_width, vocab_size = logits.shape
    return max(beam_width, logits_top_k or 0) <= MAX_CANDIDATES and beam_width <= vocab_size <= MAX_VOCABULARY


def beam_step(
    logits: Tensor,  # [B, W, V]
    scores: Tensor | None,  # [B, W] fp32
    logits_top_k: int | None = None,
    id_offsets: Tensor | None = None,  # [V]
) -> BeamStep:
    """As the reference; logits of any float type with V contiguous. ValueError for sizes beyond `supports`."""
    batch, beam_width, vocab_size = logits.shape
    if not supports(logits, scores, logits_top_k):
        raise ValueError(
            f"the kernel takes up to {MAX_CANDIDATES} beams and kept logits and a vocabulary from the number of beams "
            f"to {MAX_VOCABULARY}, not {beam_width}, {logits_top_k} and {vocab_size}"
        )
    if logits.stride(2) != 1 and vocab_size > 1:
        raise ValueError("the logits of a beam must be contiguous")
    rows, device = batch * beam_width, logits.device
    num_kept = min(max(beam_width, logits_top_k or 0), vocab_size)
    num_tiles = triton.cdiv(vocab_size, _TILE)
    keys = torch.empty(rows, num_tiles, num_kept, dtype=torch.int64, device=device)
    highest = torch.empty(rows, num_tiles, dtype=torch.float32, device=device)
    # A sum of exponentials, or, of the K highest logits, how many equal to the tile's last one did not fit.
    share = torch.empty(rows, num_tiles, dtype=torch.float32, device=device)
    columns = torch.empty(rows, beam_width, dtype=torch.int64, device=device)
    column_log_probs = torch.empty(rows, beam_width, dtype=torch.float32, device=device)
    step = BeamStep(
        scores=torch.empty(batch, beam_width, dtype=torch.float32, device=device),
        parents=torch.empty(batch, beam_width, dtype=torch.int64, device=device),
        tokens=torch.empty(batch, beam_width, dtype=torch.int64, device=device),
    )
    if rows == 0:
        return step
    only_top, tile = logits_top_k is not None, min(_TILE, triton.next_power_of_2(vocab_size))
    _tile_kernel[(rows, num_tiles)](
        logits, logits.stride(0), logits.stride(1), keys, highest, share, beam_width, vocab_size, num_kept,
        ONLY_TOP=only_top, TILE=tile, num_warps=num_warps_for(tile),
    )  # fmt: skip
    num_listed = triton.next_power_of_2(num_tiles * num_kept)
    _beam_kernel[(rows,)](
        keys, highest, share, columns, column_log_probs, beam_width, num_tiles, num_kept,
        ONLY_TOP=only_top, LISTED=num_listed, TILES=triton.next_power_of_2(num_tiles),
        num_warps=num_warps_for(num_listed),
    )  # fmt: skip
    num_candidates = triton.next_power_of_2(beam_width * beam_width)
    _request_kernel[(batch,)](
        columns, column_log_probs, scores if scores is None else scores.contiguous(), id_offsets, *step, beam_width,
        CANDIDATES=num_candidates, num_warps=num_warps_for(num_candidates),
    )  # fmt: skip
    return step


def num_warps_for(num_keys: int) -> int:
    """At most 8 keys per thread, which fit in registers on every target."""
    return min(16, max(1, num_keys // 256))


@triton.jit
def _key(value, index):  # fp32, int32 -> int64
    """Greater for a greater value, then for a lower index; both zeros are one value."""
    bits = tl.where(value == 0, 0.0, value).to(tl.int32, bitcast=True)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.to(tl.int64) << 32) | (0x7FFFFFFF - index).to(tl.int64)


@triton.jit
def _value(key):  # int64 -> fp32
    ordered = (key >> 32).to(tl.int32)
    return (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _index(key):  # int64 -> int64
    return 0x7FFFFFFF - (key & 0x7FFFFFFF)


@triton.jit
def _tile_kernel(
    logits_ptr,  # [B, W, V]
    batch_stride,
    beam_stride,
    keys_ptr,  # [B·W, tiles, K]
    highest_ptr,  # [B·W, tiles]
    share_ptr,  # [B·W, tiles]
    beam_width,
    vocab_size,
    num_kept,
    ONLY_TOP: tl.constexpr,
    TILE: tl.constexpr,
):
    # Rows may be more than the second axis of a grid holds.
    row = tl.program_id(0)
    tile = tl.program_id(1)
    request = (row // beam_width).to(tl.int64)
    beam = (row % beam_width).to(tl.int64)
    column = tile * TILE + tl.arange(0, TILE)
    inside = column < vocab_size
    logits_ptr += request * batch_stride + beam * beam_stride
    logit = tl.load(logits_ptr + column, mask=inside, other=-float("inf")).to(tl.float32)
    key = tl.where(inside, _key(logit, column), _LOWEST_KEY)

    out = row.to(tl.int64) * tl.num_programs(1) + tile
    best = tl.max(key, axis=0)
    highest = _value(best)
    tl.store(highest_ptr + out, highest)
    tl.store(keys_ptr + out * num_kept, best)
    for place in range(1, num_kept):
        key = tl.where(key == best, _LOWEST_KEY, key)
        best = tl.max(key, axis=0)
        tl.store(keys_ptr + out * num_kept + place, best)
    if ONLY_TOP:
        key = tl.where(key == best, _LOWEST_KEY, key)
        left_out = (_value(key) == _value(best)) & (key != _LOWEST_KEY)
        share = tl.sum(left_out.to(tl.float32), axis=0)
    else:
        # Where all are -inf, their difference is NaN.
        share = tl.sum(tl.where(logit == -float("inf"), 0.0, tl.exp(logit - highest)), axis=0)
    tl.store(share_ptr + out, share)


@triton.jit
def _beam_kernel(
    keys_ptr,  # [B·W, tiles, K]
    highest_ptr,  # [B·W, tiles]
    share_ptr,  # [B·W, tiles]
    columns_ptr,  # [B·W, W] int64
    log_probs_ptr,  # [B·W, W] fp32
    beam_width,
    num_tiles,
    num_kept,
    ONLY_TOP: tl.constexpr,
    LISTED: tl.constexpr,
    TILES: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    tile = tl.arange(0, TILES)
    tile_ok = tile < num_tiles
    share = tl.load(share_ptr + row * num_tiles + tile, mask=tile_ok, other=0.0)
    listed = tl.arange(0, LISTED)
    keys_ptr += row * num_tiles * num_kept
    key = tl.load(keys_ptr + listed, mask=listed < num_tiles * num_kept, other=_LOWEST_KEY)
    highest = _value(tl.max(key, axis=0))
    if ONLY_TOP:
        left = key
        best = tl.max(left, axis=0)
        for _ in range(1, num_kept):
            left = tl.where(left == best, _LOWEST_KEY, left)
            best = tl.max(left, axis=0)
        lowest = _value(best)
        # All that a tile left out equals the last one that it listed, and so either the lowest kept or too low.
        last = tl.load(keys_ptr + tile * num_kept + num_kept - 1, mask=tile_ok, other=_LOWEST_KEY)
        tied = tl.sum(tl.where(_value(last) == lowest, share, 0.0), axis=0)
        kept = (_value(key) >= lowest) & (key != _LOWEST_KEY)
        total = tl.sum(tl.where(kept, tl.exp(_value(key) - highest), 0.0), axis=0)
        total += tied * tl.exp(lowest - highest)
    else:
        tile_highest = tl.load(highest_ptr + row * num_tiles + tile, mask=tile_ok, other=-float("inf"))
        shift = tl.where(tile_highest == -float("inf"), 0.0, tl.exp(tile_highest - highest))
        total = tl.sum(share * shift, axis=0)
    log_total = tl.log(total)
    for place in range(beam_width):
        best = tl.max(key, axis=0)
        tl.store(columns_ptr + row * beam_width + place, _index(best))
        tl.store(log_probs_ptr + row * beam_width + place, _value(best) - highest - log_total)
        key = tl.where(key == best, _LOWEST_KEY, key)


@triton.jit
def _request_kernel(
    columns_ptr,  # [B, W·W] int64
    log_probs_ptr,  # [B, W·W] fp32
    scores_ptr,  # [B, W] fp32; None: only the first beam is live
    offsets_ptr,  # [V] int64
    out_scores_ptr,  # [B, W] fp32
    out_parents_ptr,  # [B, W] int64
    out_tokens_ptr,  # [B, W] int64
    beam_width,
    CANDIDATES: tl.constexpr,
):
    request = tl.program_id(0).to(tl.int64)
    candidate = tl.arange(0, CANDIDATES)
    inside = candidate < beam_width * beam_width
    columns_ptr += request * beam_width * beam_width
    log_probs_ptr += request * beam_width * beam_width
    log_prob = tl.load(log_probs_ptr + candidate, mask=inside, other=0.0)
    beam = candidate // beam_width
    if scores_ptr is not None:
        score = tl.load(scores_ptr + request * beam_width + beam, mask=inside, other=0.0)
    else:
        score = tl.where(beam == 0, 0.0, -float("inf"))
    key = tl.where(inside, _key(score + log_prob, candidate), _LOWEST_KEY)
    for place in range(beam_width):
        best = tl.max(key, axis=0)
        chosen = _index(best)
        out = request * beam_width + place
        tl.store(out_scores_ptr + out, _value(best))
        tl.store(out_parents_ptr + out, chosen // beam_width)
        token = tl.load(columns_ptr + chosen)
        if offsets_ptr is not None:
            token += tl.load(offsets_ptr + token)
        tl.store(out_tokens_ptr + out, token)
        key = tl.where(key == best, _LOWEST_KEY, key)


def variants() -> list[Variant]:
    """Compiled ahead of time in the tests: both softmaxes, chains (sizes of 1 are compiled in), the largest sizes."""
    chain = {"beam_width": 1, "num_kept": 1, "num_tiles": 1, "ONLY_TOP": False, "LISTED": 1, "TILES": 1}
    return [
        _variant("tile_bf16", _tile_kernel, _TILE, {"ONLY_TOP": False, "TILE": _TILE}, "*bf16"),
        _variant("tile_fp32_top", _tile_kernel, _TILE, {"ONLY_TOP": True, "TILE": _TILE}, "*fp32"),
        _variant("beam_w1", _beam_kernel, 1, chain),
        _variant("beam_w64", _beam_kernel, 4096, {"ONLY_TOP": False, "LISTED": 4096, "TILES": 64}),
        _variant("beam_w64_top", _beam_kernel, 4096, {"ONLY_TOP": True, "LISTED": 4096, "TILES": 64}),
        _variant("request_w1_root", _request_kernel, 1, {"beam_width": 1, "CANDIDATES": 1, "scores_ptr": None}),
        _variant("request_w64", _request_kernel, 4096, {"CANDIDATES": 4096}),
    ]


def _variant(name: str, kernel: Any, num_keys: int, constants: dict[str, Any], logits: str = "*fp32") -> Variant:
    integers = {"keys_ptr", "columns_ptr", "offsets_ptr", "out_parents_ptr", "out_tokens_ptr"}
    types = {
        argument: "*i64" if argument in integers else "*fp32" if argument.endswith("_ptr") else "i32"
        for argument in kernel.arg_names
        if argument not in constants
    }
    if "logits_ptr" in types:
        types["logits_ptr"] = logits
    return Variant(name, kernel, types, constants, num_warps_for(num_keys))
