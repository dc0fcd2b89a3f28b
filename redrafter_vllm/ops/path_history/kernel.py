# SPDX-License-Identifier: Apache-2.0
# mypy: disable-error-code="no-untyped-def"
"""Penalties and bad words along each row's path, one launch each; a program climbs from its node to the root.

Expressions and their order are those of vLLM's kernels for chains, so that a row gets the bits of plain decoding.
"""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from redrafter_vllm.ops.path_history.reference import BadWords, Paths, Penalties
from redrafter_vllm.ops.variant import Variant

_BLOCK_V = 2048


def penalise(logits: Tensor, paths: Paths, slot_of_row: Tensor, penalties: Penalties) -> None:
    """See `reference.penalise`. Rows of slots without penalties are not touched."""
    num_rows, vocab_size = logits.shape
    if num_rows == 0:
        return
    _penalties_kernel[(num_rows, triton.cdiv(vocab_size, _BLOCK_V))](
        logits,
        logits.stride(0),
        vocab_size,
        slot_of_row,
        *_path_args(paths),
        *penalties[:3],
        penalties.prompt_mask,
        penalties.prompt_mask.stride(0),
        penalties.output_counts,
        penalties.output_counts.stride(0),
        BLOCK_V=_BLOCK_V,
    )


def forbid_bad_words(
    logits: Tensor, paths: Paths, slot_of_row: Tensor, words: BadWords, max_words: int, max_length: int
) -> None:
    """See `reference.forbid_bad_words`; `max_length` is not needed here."""
    if logits.shape[0] == 0 or max_words == 0:
        return
    _bad_words_kernel[(logits.shape[0], max_words)](
        logits,
        logits.stride(0),
        slot_of_row,
        *_path_args(paths),
        words.tokens,
        words.tokens.stride(0),
        words.offsets,
        words.offsets.stride(0),
        words.num_words,
        words.text,
        words.text.stride(0),
        words.prompt_len,
        words.total_len,
        num_warps=1,
    )


def _path_args(paths: Paths) -> tuple[Tensor | int, ...]:
    tokens, parents = paths.tokens, paths.parents
    if any(x.stride(-1) != 1 and x.shape[-1] > 1 for x in (tokens, parents)):
        raise ValueError("tokens and parents must be contiguous in their last dimension")
    return tokens, tokens.stride(0), parents, parents.stride(0), paths.req_of_row, paths.local_of_row


@triton.jit
def _penalties_kernel(
    logits_ptr,  # [R, V]
    logits_stride,
    vocab_size,
    slot_of_row_ptr,  # [R]
    tokens_ptr,  # [B, N]
    tokens_stride,
    parents_ptr,  # [B, N]
    parents_stride,
    req_of_row_ptr,  # [R]
    local_of_row_ptr,  # [R]
    repetition_ptr,  # [S]
    frequency_ptr,  # [S]
    presence_ptr,  # [S]
    prompt_mask_ptr,  # [S, cdiv(V, 32)]
    prompt_mask_stride,
    output_counts_ptr,  # [S, V]
    output_counts_stride,
    BLOCK_V: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slot_of_row_ptr + row).to(tl.int64)
    repetition = tl.load(repetition_ptr + slot)
    frequency = tl.load(frequency_ptr + slot)
    presence = tl.load(presence_ptr + slot)
    if (repetition == 1.0) & (frequency == 0.0) & (presence == 0.0):
        return

    token_V = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    in_V = token_V < vocab_size
    count_V = tl.load(output_counts_ptr + slot * output_counts_stride + token_V, mask=in_V, other=0)
    req = tl.load(req_of_row_ptr + row).to(tl.int64)
    node = tl.load(local_of_row_ptr + row).to(tl.int64) - 1
    while node >= 0:
        drafted = tl.load(tokens_ptr + req * tokens_stride + node)
        count_V += (token_V == drafted).to(tl.int32)
        node = tl.load(parents_ptr + req * parents_stride + node).to(tl.int64)
    written_V = count_V > 0

    logits_ptr += row * logits_stride
    logit_V = tl.load(logits_ptr + token_V, mask=in_V, other=0.0)
    if repetition != 1.0:
        word_V = tl.load(prompt_mask_ptr + slot * prompt_mask_stride + token_V // 32, mask=in_V, other=0)
        read_V = ((word_V >> (token_V % 32)) & 1) != 0
        scale_V = tl.where(read_V | written_V, repetition, 1.0)
        logit_V *= tl.where(logit_V > 0, 1.0 / scale_V, scale_V)
    logit_V -= frequency * count_V
    logit_V -= presence * written_V
    tl.store(logits_ptr + token_V, logit_V, mask=in_V)


@triton.jit
def _bad_words_kernel(
    logits_ptr,  # [R, V]
    logits_stride,
    slot_of_row_ptr,  # [R]
    tokens_ptr,  # [B, N]
    tokens_stride,
    parents_ptr,  # [B, N]
    parents_stride,
    req_of_row_ptr,  # [R]
    local_of_row_ptr,  # [R]
    words_ptr,  # [S, *]
    words_stride,
    offsets_ptr,  # [S, *]
    offsets_stride,
    num_words_ptr,  # [S]
    text_ptr,  # [S, *]
    text_stride,
    prompt_len_ptr,  # [S]
    total_len_ptr,  # [S]
):
    row = tl.program_id(0).to(tl.int64)
    word = tl.program_id(1)
    slot = tl.load(slot_of_row_ptr + row).to(tl.int64)
    if word >= tl.load(num_words_ptr + slot):
        return

    words_ptr += slot * words_stride
    start = tl.load(offsets_ptr + slot * offsets_stride + word)
    last = tl.load(offsets_ptr + slot * offsets_stride + word + 1) - 1
    req = tl.load(req_of_row_ptr + row).to(tl.int64)
    node = tl.load(local_of_row_ptr + row).to(tl.int64) - 1

    # Compare backwards: the word with the drafted tokens, then with the output.
    place = last - 1
    matches = True
    while (place >= start) & (node >= 0) & matches:
        drafted = tl.load(tokens_ptr + req * tokens_stride + node)
        matches = drafted == tl.load(words_ptr + place)
        node = tl.load(parents_ptr + req * parents_stride + node).to(tl.int64)
        place -= 1
    prompt_len = tl.load(prompt_len_ptr + slot)
    at = tl.load(total_len_ptr + slot) - 1
    matches = matches & (at - prompt_len >= place - start)
    while (place >= start) & matches:
        matches = tl.load(text_ptr + slot * text_stride + at) == tl.load(words_ptr + place)
        at -= 1
        place -= 1
    if matches:
        tl.store(logits_ptr + row * logits_stride + tl.load(words_ptr + last), -float("inf"))


def variants() -> list[Variant]:
    """Compiled ahead of time in the tests."""
    return [_penalties_variant(), _bad_words_variant()]


_PATH_TYPES: dict[str, Any] = {
    "logits_ptr": "*fp32",
    "logits_stride": "i32",
    "slot_of_row_ptr": "*i32",
    "tokens_ptr": "*i64",
    "tokens_stride": "i32",
    "parents_ptr": "*i64",
    "parents_stride": "i32",
    "req_of_row_ptr": "*i64",
    "local_of_row_ptr": "*i64",
}


def _penalties_variant() -> Variant:
    types = _PATH_TYPES | {
        "vocab_size": "i32",
        "repetition_ptr": "*fp32",
        "frequency_ptr": "*fp32",
        "presence_ptr": "*fp32",
        "prompt_mask_ptr": "*i32",
        "prompt_mask_stride": "i32",
        "output_counts_ptr": "*i32",
        "output_counts_stride": "i32",
    }
    return Variant("penalties", _penalties_kernel, types, {"BLOCK_V": _BLOCK_V})


def _bad_words_variant() -> Variant:
    pointers = ("words_ptr", "offsets_ptr", "num_words_ptr", "text_ptr", "prompt_len_ptr", "total_len_ptr")
    strides = ("words_stride", "offsets_stride", "text_stride")
    types = _PATH_TYPES | dict.fromkeys(pointers, "*i32") | dict.fromkeys(strides, "i32")
    return Variant("bad_words", _bad_words_kernel, types, num_warps=1)
