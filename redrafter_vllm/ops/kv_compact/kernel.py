# SPDX-License-Identifier: Apache-2.0
"""KV compaction of all layers in one launch; entries are moved as bits, whatever their type."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import gcd
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from redrafter_vllm.ops.variant import Variant

_WORDS = {1: tl.int8, 2: tl.int16, 4: tl.int32, 8: tl.int64}
_TILE = 4096  # words that one program holds: 32 registers a thread


class _Layout(NamedTuple):
    """How a cache lies in memory; layers that agree are moved by one launch."""

    heads: int
    block_size: int
    width: int  # of an entry, in words
    word: int  # bytes
    strides: tuple[int, int, int, int]  # block, head, slot, word; in words


@dataclass(frozen=True)
class LayerGroup:
    """Layers of one layout, and where they begin."""

    layout: _Layout
    addresses: Tensor  # [layers] int64
    alignment: int  # that all addresses have, in bytes, at most 16


def kv_compact(
    kv_caches: Sequence[Tensor],  # each [num_blocks, heads, block_size, width], any strides
    source_slots: Tensor,  # [B, T]
    target_slots: Tensor,  # [B, T]
) -> None:
    """See `reference.kv_compact`, with one condition more: sources and targets may overlap within a request only.

    One launch moves all layers of one layout; models have one as a rule. The first call for a list of caches copies
    their addresses to the device, which a graph capture forbids: call `layer_groups` (or this) before.
    """
    num_reqs, num_entries = source_slots.shape
    if num_reqs == 0 or num_entries == 0:
        return
    for group in layer_groups(kv_caches):
        _move(group, source_slots, target_slots)


def layer_groups(kv_caches: Sequence[Tensor]) -> tuple[LayerGroup, ...]:
    """What the launches for these caches need besides the slots; made once for each list of caches and kept."""
    return _layer_groups(tuple((x.data_ptr(), x.dtype, x.shape[1:], x.stride(), x.device) for x in kv_caches))


@lru_cache(maxsize=16)
def _layer_groups(caches: tuple[Any, ...]) -> tuple[LayerGroup, ...]:
    members: dict[_Layout, list[int]] = {}
    for address, dtype, shape, strides, _ in caches:
        members.setdefault(_layout(address, dtype.itemsize, shape, strides), []).append(address)
    groups = []
    for layout, addresses in members.items():
        table = torch.tensor(addresses, dtype=torch.int64, device=caches[0][-1])
        groups.append(LayerGroup(layout, table, gcd(16, *addresses)))
    return tuple(groups)


def _layout(address: int, itemsize: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> _Layout:
    """The widest words, up to four bytes, that entries of this cache consist of."""
    heads, block_size, width = shape
    word = itemsize
    if strides[3] == 1:
        word = gcd(4, address, itemsize * width, *(itemsize * stride for stride in strides[:3]))
        strides = (*(stride * itemsize // word for stride in strides[:3]), 1)
        width = width * itemsize // word
    block, head, slot, element = strides
    return _Layout(heads, block_size, width, word, (block, head, slot, element))


def _move(group: LayerGroup, source_slots: Tensor, target_slots: Tensor) -> None:
    layout = group.layout
    num_reqs, num_entries = source_slots.shape
    block_t, block_d = _tile(num_entries, layout.width)
    parts = layout.heads * triton.cdiv(layout.width, block_d)
    _move_kernel[(num_reqs, group.addresses.shape[0], parts)](
        group.addresses,
        source_slots,
        target_slots,
        *source_slots.stride(),
        *target_slots.stride(),
        *layout.strides,
        num_entries,
        layout.heads,
        layout.block_size,
        layout.width,
        WORD=_WORDS[layout.word],
        ALIGNMENT=group.alignment,
        BLOCK_T=block_t,
        BLOCK_D=block_d,
        num_warps=_num_warps(block_t, block_d),
        num_stages=1,
    )


def _tile(num_entries: int, width: int) -> tuple[int, int]:
    block_t = triton.next_power_of_2(num_entries)
    return block_t, min(triton.next_power_of_2(width), max(_TILE // block_t, 16))


def _num_warps(block_t: int, block_d: int) -> int:
    return min(max(block_t * block_d // 512, 1), 4)


@triton.jit
def _move_kernel(
    addresses_ptr,  # [layers] int64
    source_ptr,  # [B, T]
    target_ptr,  # [B, T]
    source_req_stride,
    source_entry_stride,
    target_req_stride,
    target_entry_stride,
    block_stride,
    head_stride,
    slot_stride,
    word_stride,
    num_entries,
    heads,
    block_size,
    width,
    WORD: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    req = tl.program_id(0).to(tl.int64)
    layer = tl.program_id(1)
    head = (tl.program_id(2) % heads).to(tl.int64)
    first_word = tl.program_id(2) // heads * BLOCK_D

    entry_T = tl.arange(0, BLOCK_T)
    named_T = entry_T < num_entries
    source_T = tl.load(source_ptr + req * source_req_stride + entry_T * source_entry_stride, mask=named_T, other=-1)
    target_T = tl.load(target_ptr + req * target_req_stride + entry_T * target_entry_stride, mask=named_T, other=-1)
    source_T = source_T.to(tl.int64)
    target_T = target_T.to(tl.int64)
    # vLLM marks by -1 what has no slot.
    moves_T = (source_T != target_T) & (source_T >= 0) & (target_T >= 0)

    word_D = first_word + tl.arange(0, BLOCK_D)
    mask_TD = moves_T[:, None] & (word_D < width)[None, :]
    word_D = word_D.to(tl.int64) * word_stride
    cache = tl.load(addresses_ptr + layer).to(tl.pointer_type(WORD))
    cache = tl.multiple_of(cache, ALIGNMENT) + head * head_stride
    from_T = source_T // block_size * block_stride + source_T % block_size * slot_stride
    to_T = target_T // block_size * block_stride + target_T % block_size * slot_stride

    moved_TD = tl.load(cache + from_T[:, None] + word_D[None, :], mask=mask_TD)
    # An entry's target may be a later entry's source: all are read before the first is written.
    tl.debug_barrier()
    tl.store(cache + to_T[:, None] + word_D[None, :], moved_TD, mask=mask_TD)


def variants() -> list[Variant]:
    """Compiled ahead of time in the tests: short and long paths; bf16 entries of 128 + 128, odd and fp8 ones."""
    return [
        _variant("t5_w128_word4", 5, 128, 4),
        _variant("t16_w256_word4", 16, 256, 4),
        _variant("t128_w64_word4", 128, 64, 4),
        _variant("t5_w80_word2", 5, 80, 2),
        _variant("t5_w112_word1", 5, 112, 1),
    ]


def _variant(name: str, num_entries: int, width: int, word: int) -> Variant:
    block_t, block_d = _tile(num_entries, width)
    strides = ("block_stride", "head_stride", "slot_stride")
    counts = ("num_entries", "heads", "block_size", "width", "source_req_stride", "target_req_stride")
    types = {
        "addresses_ptr": "*i64",
        "source_ptr": "*i64",
        "target_ptr": "*i64",
        "block_stride": "i64",
        "head_stride": "i32",
        "slot_stride": "i32",
    } | dict.fromkeys(counts, "i32")
    constants = {
        "source_entry_stride": 1,
        "target_entry_stride": 1,
        "word_stride": 1,
        "WORD": _WORDS[word],
        "ALIGNMENT": 16 if word == 4 else word,
        "BLOCK_T": block_t,
        "BLOCK_D": block_d,
    }
    return Variant(
        name,
        _move_kernel,
        types,
        constants,
        num_warps=_num_warps(block_t, block_d),
        num_stages=1,
        multiples_of_16=frozenset(strides) if word == 4 else frozenset(),
    )
