# SPDX-License-Identifier: Apache-2.0
"""Plain-torch KV compaction."""

from collections.abc import Sequence

from torch import Tensor


def kv_compact(
    kv_caches: Sequence[Tensor],  # each [num_blocks, heads, block_size, width]
    source_slots: Tensor,  # [B, T]
    target_slots: Tensor,  # [B, T]
) -> None:
    """Copy cache entries from `source_slots` to `target_slots`, in every layer, in place.

    A slot is `block * block_size + offset`. Entries with nothing to move name one slot twice (source = target); that
    slot must not be another entry's target. All sources are read before any target is written, so the two sets may
    overlap.
    """
    source, target = source_slots.flatten(), target_slots.flatten()
    for cache in kv_caches:
        block_size = cache.shape[2]
        moved = cache[source // block_size, :, source % block_size]
        cache[target // block_size, :, target % block_size] = moved
