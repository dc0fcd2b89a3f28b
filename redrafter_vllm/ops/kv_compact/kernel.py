# SPDX-License-Identifier: Apache-2.0
# mypy: disable-error-code="no-untyped-def"
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
_TILE = 4096  # words that one program holds: 32 registers per thread


class _Layout(NamedTuple):
    """Memory layout of a cache; layers of one layout are moved by one launch."""

    heads: int
    block_size: int
    width: int  # of an entry, in words
    word: int  # bytes
    strides: tuple[int, int, int, int]  # block, head, slot, word; in words


@dataclass(frozen=True)
class LayerGroup:
    """Layers of one layout, and their addresses."""

    layout: _Layout
    addresses: Tensor  # [layers] int64
    alignment: int  # that all addresses have, in bytes, at most 16


def kv_compact(
    kv_caches: Sequence[Tensor],  # each [num_blocks, heads, block_size, width], any strides
    path: Tensor,  # [B, T]
    root_token: Tensor,  # [B]
    slots: Tensor,  # [tokens]
) -> None:
    """See `reference.kv_compact`. Entries without a slot (−1) stay where they are.

    One launch moves all layers of one layout; most models have one. The first call for a list of caches copies
    their addresses to the device, which a graph capture forbids: call `layer_groups` (or this) before.
    """
    num_reqs, num_entries = path.shape
    if num_reqs == 0 or num_entries == 0:
        return
    for group in layer_groups(kv_caches):
        _move(group, path, root_token, slots)


def layer_groups(kv_caches: Sequence[Tensor]) -> tuple[LayerGroup, ...]:
    """The groups of layers of one layout; computed once for each list of caches and kept."""
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
    """The layout of this cache in the widest words, up to four bytes, that its entries consist of."""
    heads, block_size, width = shape
    word = itemsize
    if strides[3] == 1:
        word = gcd(4, address, itemsize * width, *(itemsize * stride for stride in strides[:3]))
        strides = (*(stride * itemsize // word for stride in strides[:3]), 1)
        width = width * itemsize // word
    block, head, slot, element = strides
    return _Layout(heads, block_size, width, word, (block, head, slot, element))


def _move(group: LayerGroup, path: Tensor, root_token: Tensor, slots: Tensor) -> None:
    layout = group.layout
    num_reqs, num_entries = path.shape
    block_t, block_d = _tile(num_entries, layout.width)
    parts = layout.heads * triton.cdiv(layout.width, block_d)
    _move_kernel[(num_reqs, group.addresses.shape[0], parts)](
        group.addresses,
        path,
        root_token,
        slots,
        *path.stride(),
        num_entries,
        **_constants(layout, group.alignment, block_t, block_d),
        num_warps=_num_warps(block_t, block_d),
        num_stages=1,
    )


def _constants(layout: _Layout, alignment: int, block_t: int, block_d: int) -> dict[str, Any]:
    """The layout as constants, with which the compiler divides by shifts and loads 16 bytes at once."""
    strides = ("BLOCK_STRIDE", "HEAD_STRIDE", "SLOT_STRIDE", "WORD_STRIDE")
    return dict(zip(strides, layout.strides, strict=True)) | {
        "HEADS": layout.heads,
        "BLOCK_SIZE": layout.block_size,
        "WIDTH": layout.width,
        "WORD": _WORDS[layout.word],
        "ALIGNMENT": alignment,
        "BLOCK_T": block_t,
        "BLOCK_D": block_d,
    }


def _tile(num_entries: int, width: int) -> tuple[int, int]:
    block_t = triton.next_power_of_2(num_entries)
    return block_t, min(triton.next_power_of_2(width), max(_TILE // block_t, 16))


def _num_warps(block_t: int, block_d: int) -> int:
    return min(max(block_t * block_d // 512, 1), 4)


@triton.jit
def _move_kernel(
    addresses_ptr,  # [layers] int64
    path_ptr,  # [B, T]
    root_token_ptr,  # [B]
    slots_ptr,  # [tokens]
    path_req_stride,
    path_entry_stride,
    num_entries,
    BLOCK_STRIDE: tl.constexpr,
    HEAD_STRIDE: tl.constexpr,
    SLOT_STRIDE: tl.constexpr,
    WORD_STRIDE: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    WORD: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    req = tl.program_id(0).to(tl.int64)
    layer = tl.program_id(1)
    head = (tl.program_id(2) % HEADS).to(tl.int64)
    first_word = tl.program_id(2) // HEADS * BLOCK_D

    entry_T = tl.arange(0, BLOCK_T)
    named_T = entry_T < num_entries
    node_T = tl.load(path_ptr + req * path_req_stride + entry_T * path_entry_stride, mask=named_T, other=-1)
    first_slot_ptr = slots_ptr + tl.load(root_token_ptr + req) + 1
    source_T = tl.load(first_slot_ptr + node_T, mask=node_T >= 0, other=-1).to(tl.int64)
    target_T = tl.load(first_slot_ptr + entry_T, mask=node_T >= 0, other=-1).to(tl.int64)
    # vLLM marks tokens without a slot by -1.
    moves_T = (source_T != target_T) & (source_T >= 0) & (target_T >= 0)

    word_D = first_word + tl.arange(0, BLOCK_D)
    mask_TD = moves_T[:, None] & (word_D < WIDTH)[None, :]
    word_D = word_D.to(tl.int64) * WORD_STRIDE
    cache = tl.load(addresses_ptr + layer).to(tl.pointer_type(WORD))
    cache = tl.multiple_of(cache, ALIGNMENT) + head * HEAD_STRIDE
    from_T = source_T // BLOCK_SIZE * BLOCK_STRIDE + source_T % BLOCK_SIZE * SLOT_STRIDE
    to_T = target_T // BLOCK_SIZE * BLOCK_STRIDE + target_T % BLOCK_SIZE * SLOT_STRIDE

    moved_TD = tl.load(cache + from_T[:, None] + word_D[None, :], mask=mask_TD)
    # An entry's target may be a later entry's source: all are read before the first is written.
    tl.debug_barrier()
    tl.store(cache + to_T[:, None] + word_D[None, :], moved_TD, mask=mask_TD)


def variants() -> list[Variant]:
    """Compiled ahead of time in the tests: key and value heads side by side or apart, of 2- and 1-byte elements."""
    return [
        _variant("t5_bf16_2x128", 5, _layout(16, 2, (8, 16, 256), (32768, 4096, 256, 1))),
        _variant("t5_bf16_80_page256", 5, _layout(16, 2, (8, 256, 80), (327680, 80, 640, 1))),
        _variant("t5_fp8_112", 5, _layout(16, 1, (8, 16, 112), (28672, 112, 896, 1))),
        _variant("t16_fp32_2x256", 16, _layout(16, 4, (4, 48, 512), (98304, 24576, 512, 1))),
        _variant("t128_bf16_2x64", 128, _layout(16, 2, (8, 16, 128), (16384, 2048, 128, 1))),
        _variant("t5_bf16_odd", 5, _layout(2, 2, (3, 16, 33), (1584, 528, 33, 1)), alignment=2),
    ]


def _variant(name: str, num_entries: int, layout: _Layout, alignment: int = 16) -> Variant:
    block_t, block_d = _tile(num_entries, layout.width)
    types = dict.fromkeys(("addresses_ptr", "path_ptr", "root_token_ptr", "slots_ptr"), "*i64")
    types |= dict.fromkeys(("path_req_stride", "num_entries"), "i32")
    constants = _constants(layout, alignment, block_t, block_d) | {"path_entry_stride": 1}
    return Variant(name, _move_kernel, types, constants, num_warps=_num_warps(block_t, block_d), num_stages=1)
