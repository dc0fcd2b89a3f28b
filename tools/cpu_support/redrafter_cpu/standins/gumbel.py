# SPDX-License-Identifier: Apache-2.0
"""Stand-ins for `vllm.v1.worker.gpu.sample.gumbel`: temperature and Gumbel-max sampling.

Same bits as the interpreted kernels: MurmurHash3 (x86, 32 bits) of (seed, position, token), turned into uniform numbers
and Gumbel noise in the order of operations, and at the precision, that vLLM's kernel prescribes.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch

from redrafter_cpu.arrays import Array, load, view

_DRAFT_SALT = 1 << 30
_HIGH_DOMAIN = 0x9E3779B9
_CHUNK = 1 << 16  # elements of noise at once: the intermediate arrays then stay in the cache
_U32 = np.uint32


def temperature(
    grid: tuple[int, ...],
    logits_ptr: torch.Tensor,  # [R, V]
    logits_stride: int,
    expanded_idx_mapping_ptr: torch.Tensor,  # [R]
    temperature_ptr: torch.Tensor,
    vocab_size: int,
    BLOCK_SIZE: int,
) -> Any:
    """Divide the rows of `logits` by their request's temperature, except where it is 0 or 1."""
    if logits_ptr.dtype != torch.float32:
        return NotImplemented
    temperatures = load(temperature_ptr)[view(expanded_idx_mapping_ptr)]
    logits = view(logits_ptr)
    for row in np.flatnonzero((temperatures != 0.0) & (temperatures != 1.0)):
        np.divide(logits[row], temperatures[row], out=logits[row])
    return None


def gumbel_sample(
    grid: tuple[int, ...],
    local_argmax_ptr: torch.Tensor,  # [R, cdiv(V, BLOCK_SIZE)] int64, out
    local_argmax_stride: int,
    local_max_ptr: torch.Tensor,  # [R, cdiv(V, BLOCK_SIZE)] out
    local_max_stride: int,
    logits_cache_ptr: torch.Tensor | None,
    logits_cache_stride_0: int,
    logits_cache_stride_1: int,
    logits_cache_col_ptr: torch.Tensor | None,
    logits_cache_source_ptr: torch.Tensor | None,
    logits_cache_source_stride: int,
    logits_ptr: torch.Tensor,  # [R, V]
    logits_stride: int,
    expanded_idx_mapping_ptr: torch.Tensor,  # [R], negative: no request, greedy
    seeds_ptr: torch.Tensor,
    pos_ptr: torch.Tensor,  # [R]
    temp_ptr: torch.Tensor,
    vocab_size: int,
    BLOCK_SIZE: int,
    IS_DRAFTING: bool,
    APPLY_TEMPERATURE: bool,
    USE_FP64: bool,
    PER_TOKEN_COL: bool,
    *,
    seed_by_column: bool = False,
) -> Any:
    """The greatest noised logit of each block of the vocabulary, and its token.

    With `seed_by_column`, as vLLM 0.33 does, a row that is cached in column c draws the noise of (seed xor c * 2^32).
    """
    logits = load(logits_ptr)
    if logits.dtype != np.float32 or bool(np.isnan(logits).any()):
        return NotImplemented
    requests = view(expanded_idx_mapping_ptr).astype(np.int64)
    temperatures = np.where(requests >= 0, load(temp_ptr)[requests], np.float32(0.0)).astype(np.float32)
    seeds = view(seeds_ptr)[requests]
    if logits_cache_ptr is not None:
        columns = _columns(logits_cache_col_ptr, len(requests))
        _cache_logits(logits_cache_ptr, columns, logits_cache_source_ptr, requests, vocab_size)
        if seed_by_column:
            seeds = seeds ^ (columns << 32)

    dtype = np.float64 if USE_FP64 else np.float32
    scores = np.full((logits.shape[0], grid[1] * BLOCK_SIZE), -np.inf, dtype=dtype)
    scores[:, :vocab_size] = logits
    noisy = np.flatnonzero(temperatures)
    positions = view(pos_ptr).astype(np.int64) + (_DRAFT_SALT if IS_DRAFTING else 0)
    step = max(1, _CHUNK // vocab_size)
    for rows in (noisy[i : i + step] for i in range(0, len(noisy), step)):
        chosen = logits[rows]
        if APPLY_TEMPERATURE:
            chosen = chosen / temperatures[rows, None]
        noise = gumbel_noise(seeds[rows], positions[rows], vocab_size, fp64=USE_FP64)
        scores[rows, :vocab_size] = chosen.astype(dtype, copy=False) + noise
    _reduce_blocks(scores.reshape(logits.shape[0], grid[1], BLOCK_SIZE), view(local_argmax_ptr), view(local_max_ptr))
    return None


def _columns(columns: torch.Tensor | None, rows: int) -> Array:
    """`[R]` int64, of one column for all rows or one for each."""
    assert columns is not None
    values = columns.reshape(-1).expand(rows) if columns.dim() == 0 else columns
    return view(values).astype(np.int64)


def _cache_logits(
    cache: torch.Tensor, columns: Array, source: torch.Tensor | None, requests: Array, vocab_size: int
) -> None:
    assert source is not None
    for row, request in enumerate(requests.tolist()):
        if request >= 0:
            cache[request, int(columns[row]), :vocab_size] = source[row]


def _reduce_blocks(scores: Array, argmax: Array, maximum: Array) -> None:
    """Write the winner of each block of `scores` `[R, blocks, block]`; the first of equals wins."""
    _, blocks, width = scores.shape
    winner = scores.argmax(axis=-1)
    argmax[...] = winner + np.arange(blocks, dtype=np.int64) * width
    maximum[...] = np.take_along_axis(scores, winner[..., None], axis=-1)[..., 0]


def gumbel_noise(seeds: Array, positions: Array, vocab_size: int, *, fp64: bool = False) -> Array:
    """Noise `[R, V]` of the streams `(seeds [R], positions [R])`, float32 or float64."""
    low = _hash32(seeds, positions, vocab_size, domain=0)
    if not fp64:
        return _noise32(low)
    high = _hash32(seeds, positions, vocab_size, domain=_HIGH_DOMAIN)
    uniform = _uniform64(low, high)
    return -np.log(-np.log(uniform))


def _noise32(random: Array) -> Array:
    high = (random >> _U32(16)).astype(np.float32)
    high *= np.float32(2.0**-16)
    uniform = (random & _U32(0xFFFF)).astype(np.float32)
    uniform += np.float32(0.5)
    uniform *= np.float32(2.0**-32)
    uniform += high
    noise = _log1p_neg(uniform)
    np.negative(noise, out=noise)
    np.log(noise, out=noise)
    return np.negative(noise, out=noise)


def _log1p_neg(value: Array) -> Array:
    """log(1 - value) in float32: an eighth-degree series below 1/4, the logarithm itself above."""
    direct = np.subtract(np.float32(1.0), value)
    np.maximum(direct, np.float32(2.0**-24), out=direct)
    np.log(direct, out=direct)
    series = np.multiply(value, np.float32(1.0 / 8.0))
    for denominator in range(7, 1, -1):
        series += np.float32(1.0 / denominator)
        series *= value
    series += np.float32(1.0)
    series *= -value
    np.copyto(direct, series, where=value < np.float32(0.25))
    return direct


def _uniform64(low: Array, high: Array) -> Array:
    random53 = ((high.astype(np.uint64) << np.uint64(32)) | low) >> np.uint64(11)
    uniform = (random53.astype(np.float64) + 0.5) * 2.0**-53
    return np.where(uniform == 1.0, uniform - 2.0**-53, uniform)


def _hash32(seeds: Array, positions: Array, vocab_size: int, *, domain: int) -> Array:
    """`[R, V]` hashes: the request's prefix, then the token as the last word."""
    prefix = np.full(len(seeds), domain, dtype=_U32)
    for word in (seeds, seeds >> 32, positions):
        prefix = _mix(prefix, _scramble((word & 0xFFFFFFFF).astype(_U32)))
    h = prefix[:, None] ^ _scrambled_tokens(vocab_size)
    h = _rotate(h, 13)
    h *= _U32(5)
    h += _U32(0xE6546B64)
    return _finish(h)


def _mix(h: Array, key: Array) -> Array:
    return _rotate(h ^ key, 13) * _U32(5) + _U32(0xE6546B64)


def _finish(h: Array) -> Array:
    h ^= _U32(16)
    h ^= h >> _U32(16)
    h *= _U32(0x85EBCA6B)
    h ^= h >> _U32(13)
    h *= _U32(0xC2B2AE35)
    h ^= h >> _U32(16)
    return h


def _scramble(key: Array) -> Array:
    return _rotate(key * _U32(0xCC9E2D51), 15) * _U32(0x1B873593)


def _rotate(value: Array, shift: int) -> Array:
    left = value << _U32(shift)
    left |= value >> _U32(32 - shift)
    return left


@lru_cache(maxsize=8)
def _scrambled_tokens(vocab_size: int) -> Array:
    """The token's share of the hash, the same for every request and position."""
    return _scramble(np.arange(vocab_size, dtype=_U32))
