# SPDX-License-Identifier: Apache-2.0
"""Stand-ins for `vllm.v1.worker.gpu.sample.gumbel`: temperature and Gumbel-max sampling.

Same tokens as the interpreted kernels: MurmurHash3 (x86, 32 bits) of (seed, position, token), turned into uniform
numbers and Gumbel noise in the order of operations, and at the precision, that vLLM prescribes. Logarithms are taken
only for the tokens that can win, by a bound on their noise.
"""

from __future__ import annotations

import math
from functools import lru_cache
from threading import get_ident
from typing import Any

import numpy as np
import torch

from redrafter_cpu.arrays import Array, load, view

_DRAFT_SALT = 1 << 30
_HIGH_DOMAIN = 0x9E3779B9
_U32 = np.uint32
_RARE = 1024  # one of so many tokens has a large noise: above _USUAL, as the noise of u is below -log(u)
_USUAL = math.log(_RARE)


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
    """The greatest noised logit of a row and its token, in the block of the vocabulary that has it; others get none.

    The launcher takes the greatest of all blocks and the first of equal ones.

    With `seed_by_column`, as vLLM 0.33 does, a row that is cached in column c draws the noise of (seed xor c * 2^32).
    """
    logits = load(logits_ptr)
    if logits.dtype != np.float32:
        return NotImplemented
    rows = np.arange(logits.shape[0])
    tokens = logits.argmax(axis=1)  # the first that is no number, where there is one
    values = logits[rows, tokens].astype(np.float64 if USE_FP64 else np.float32)
    if np.isnan(values).any():
        return NotImplemented
    requests = view(expanded_idx_mapping_ptr).astype(np.int64)
    temperatures = np.where(requests >= 0, load(temp_ptr)[requests], np.float32(0.0)).astype(np.float32)
    seeds = view(seeds_ptr)[requests]
    if logits_cache_ptr is not None:
        columns = _columns(logits_cache_col_ptr, len(requests))
        _cache_logits(logits_cache_ptr, columns, logits_cache_source_ptr, requests, vocab_size)
        if seed_by_column:
            seeds = seeds ^ (columns << 32)

    positions = view(pos_ptr).astype(np.int64) + (_DRAFT_SALT if IS_DRAFTING else 0)
    noisy = np.flatnonzero(temperatures)
    if len(noisy):
        find = _noised_argmax64 if USE_FP64 else _noised_argmax
        divisors = temperatures[noisy] if APPLY_TEMPERATURE else np.ones(len(noisy), dtype=np.float32)
        tokens[noisy], values[noisy] = find(logits, noisy, divisors, seeds[noisy], positions[noisy])
    argmax, maximum, blocks = view(local_argmax_ptr), view(local_max_ptr), tokens // BLOCK_SIZE
    argmax[...], maximum[...] = 0, -np.inf
    argmax[rows, blocks], maximum[rows, blocks] = tokens, values
    return None


def _noised_argmax(logits: Array, rows: Array, divisors: Array, seeds: Array, positions: Array) -> tuple[Array, Array]:
    """Of each of `rows` of `logits` `[R, V]`, divided: the token of the greatest noised logit, and that; float32."""
    prefixes = _prefixes(seeds, positions, domain=0)
    found = [
        _candidates(logits[row] / divisor if divisor != 1 else logits[row], prefix)
        for row, divisor, prefix in zip(rows, divisors, prefixes, strict=True)
    ]
    tokens, chosen, random = (np.concatenate(parts) for parts in zip(*found, strict=True))
    scores = chosen + _noise32(random)
    ends = np.cumsum([len(own) for own, _, _ in found])
    winners, greatest = [], []
    for own_tokens, own in zip(np.split(tokens, ends[:-1]), np.split(scores, ends[:-1]), strict=True):
        greatest.append(own.max())
        winners.append(own_tokens[own == greatest[-1]].min())  # the first of equal ones
    return np.array(winners), np.array(greatest)


def _candidates(logits: Array, prefix: np.uint32) -> tuple[Array, Array, Array]:
    """Tokens of a row `[V]` of which one has the greatest noised logit, with their logits and hashes.

    These are the tokens with a large noise, whose hash is small, and those whose logit is so large that with a usual
    noise they could reach the first ones' score. Both are few, and the others' logarithms are not needed.
    """
    best = int(logits.argmax())
    top = float(logits[best])
    if not math.isfinite(top):
        best_one = np.array([best])
        return best_one, logits[best_one], np.zeros(1, dtype=_U32)
    random = _hash_row(prefix, len(logits))
    rare = _places(random < _U32(2**32 // _RARE))
    # The noise of a small u is just below -log(u), and the least of all noises is -2.82.
    reached = logits[rare] - np.log((random[rare] + 0.5) * 2.0**-32)
    least = max(top - 2.82, float(reached.max(initial=-np.inf)) - 0.001)
    # What rounding in float32 may add to a score, or take from one, several times over.
    least -= 0.01 + 2.0**-20 * (abs(top) + abs(least))
    tokens = np.concatenate([rare, _places(logits >= np.float32(least - _USUAL))])
    return tokens, logits[tokens], random[tokens]


def _places(mask: Array) -> Array:
    """Where a mask `[V]` is true: `np.flatnonzero`, in a third of the time where little is."""
    octets = np.packbits(mask)
    some = np.flatnonzero(octets != 0)
    which, bit = np.nonzero(np.unpackbits(octets[some, None], axis=1))
    return some[which] * 8 + bit


def _noised_argmax64(
    logits: Array, rows: Array, divisors: Array, seeds: Array, positions: Array
) -> tuple[Array, Array]:
    """The same with noise in float64, of all tokens."""
    scores = logits[rows] / divisors[:, None] + gumbel_noise64(seeds, positions, logits.shape[1])
    return scores.argmax(axis=1), scores.max(axis=1)


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


def gumbel_noise64(seeds: Array, positions: Array, vocab_size: int) -> Array:
    """Noise `[R, V]` float64 of the streams `(seeds [R], positions [R])`."""
    low = _hash32(seeds, positions, vocab_size, domain=0)
    high = _hash32(seeds, positions, vocab_size, domain=_HIGH_DOMAIN)
    return -np.log(-np.log(_uniform64(low, high)))


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
    return np.stack([_hash_row(prefix, vocab_size).copy() for prefix in _prefixes(seeds, positions, domain=domain)])


def _prefixes(seeds: Array, positions: Array, *, domain: int) -> Array:
    """`[R]` hashes before the last word, rotated as the token's share is."""
    prefix = np.full(len(seeds), domain, dtype=_U32)
    for word in (seeds, seeds >> 32, positions):
        prefix = _mix(prefix, _scramble((word & 0xFFFFFFFF).astype(_U32)))
    return _rotate(prefix, 13)


def _hash_row(prefix: np.uint32, vocab_size: int) -> Array:
    """`[V]` hashes of one request and position, in memory that the thread's next call overwrites."""
    h, shifted = _scratch(vocab_size, get_ident())
    # Bits that are rotated and then combined are the same as bits that are combined and then rotated.
    np.bitwise_xor(_rotated_tokens(vocab_size), prefix, out=h)
    h *= _U32(5)
    h += _U32(0xE6546B64)
    h ^= _U32(16)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, None)):
        np.right_shift(h, _U32(shift), out=shifted)
        h ^= shifted
        if factor is not None:
            h *= _U32(factor)
    return h


@lru_cache(maxsize=8)
def _scratch(vocab_size: int, thread: int) -> tuple[Array, Array]:
    """Memory for a row's hashes: such arrays are large enough that each new one costs as much as computing with it.

    Each thread has its own, as numpy lets others run meanwhile and a process may have several engines.
    """
    return np.empty(vocab_size, dtype=_U32), np.empty(vocab_size, dtype=_U32)


def _mix(h: Array, key: Array) -> Array:
    return _rotate(h ^ key, 13) * _U32(5) + _U32(0xE6546B64)


def _scramble(key: Array) -> Array:
    return _rotate(key * _U32(0xCC9E2D51), 15) * _U32(0x1B873593)


def _rotate(value: Array, shift: int) -> Array:
    left = value << _U32(shift)
    left |= value >> _U32(32 - shift)
    return left


@lru_cache(maxsize=8)
def _rotated_tokens(vocab_size: int) -> Array:
    """The token's share of the hash, the same for every request and position."""
    return _rotate(_scramble(np.arange(vocab_size, dtype=_U32)), 13)
