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
    """Move the cache entries of accepted nodes to the slots right behind the root's, in every layer, in place.

    Args:
        kv_caches: A slot of them is `block * block_size + offset`.
        path: Accepted nodes in order of depth, −1 beyond the last.
        root_token: The root's place among the step's tokens; node i stands in the (1 + i)-th place behind it.
        slots: Slot of every token of the step. Requests share none.

    All entries are read before any is written: an entry's new slot may be another one's old slot.
    """
    step_T = torch.arange(path.shape[1], device=path.device)
    moves_BT = path >= 0
    # What moves nothing copies the root's entry onto itself: the shapes stay what they are.
    source = slots[root_token[:, None] + torch.where(moves_BT, path + 1, 0)].flatten().long()
    target = slots[root_token[:, None] + torch.where(moves_BT, step_T + 1, 0)].flatten().long()
    for cache in kv_caches:
        block_size = cache.shape[2]
        moved = cache[source // block_size, :, source % block_size]
        cache[target // block_size, :, target % block_size] = moved
