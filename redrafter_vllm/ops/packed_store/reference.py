# SPDX-License-Identifier: Apache-2.0
"""Plain-torch storing of keys and values in vLLM's CPU cache."""

from torch import Tensor

from redrafter_vllm.ops.packed_attention import packed_entries


def packed_store(
    key: Tensor,  # [tokens, kv_heads, head_size]
    value: Tensor,  # [tokens, kv_heads, head_size]
    kv_cache: Tensor,  # [num_blocks, kv_heads, block_size, 2 * head_size], see `packed_entries`
    slots: Tensor,  # [at most tokens] int64, all different; -1 stores nothing
) -> None:
    """Write the keys and values of the first tokens, as many as there are slots."""
    places = (slots >= 0).nonzero()[:, 0]
    blocks, offsets = slots[places] // kv_cache.shape[2], slots[places] % kv_cache.shape[2]
    for entries, new in zip(packed_entries(kv_cache), (key, value), strict=True):
        entries[blocks, :, offsets] = new[places]
