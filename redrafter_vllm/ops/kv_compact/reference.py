# SPDX-License-Identifier: Apache-2.0
"""Plain-torch KV compaction."""

from collections.abc import Sequence

import torch
from torch import Tensor


def kv_compact(
    kv_caches: Sequence[Tensor],  # each [num_blocks, heads, block_size, width]
    path: Tensor,  # [B, T]
    root_token: Tensor,  # [B]
    slots: Tensor,  # [tokens]
) -> None:
    """Move the cache entries of accepted nodes to the slots right after the root's, in every layer, in place.

    Args:
        kv_caches: Their slots are `block * block_size + offset`.
        path: Accepted nodes in order of depth, −1 beyond the last.
        root_token: The root's index among the step's tokens; node i has the index 1 + i higher.
        slots: Slot of every token of the step. No two requests share one.

    All entries are read before any is written: an entry's new slot may be another one's old slot.
    """
    step_T = torch.arange(path.shape[1], device=path.device)
    moves_BT = path >= 0
    # Where nothing moves, the root's entry is copied onto itself, so that shapes are fixed.
    source = slots[root_token[:, None] + torch.where(moves_BT, path + 1, 0)].flatten().long()
    target = slots[root_token[:, None] + torch.where(moves_BT, step_T + 1, 0)].flatten().long()
    places = {size: (*_place(source, size), *_place(target, size)) for size in {cache.shape[2] for cache in kv_caches}}
    for cache in kv_caches:
        source_block, source_offset, target_block, target_offset = places[cache.shape[2]]
        cache[target_block, :, target_offset] = cache[source_block, :, source_offset]


def _place(slots: Tensor, block_size: int) -> tuple[Tensor, Tensor]:
    return slots // block_size, slots % block_size
