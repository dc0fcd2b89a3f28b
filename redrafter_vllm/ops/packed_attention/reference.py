# SPDX-License-Identifier: Apache-2.0
"""Plain-torch tree attention over vLLM's CPU cache, one request at a time."""

import torch
import torch.nn.functional as F
from torch import Tensor

from redrafter_vllm.ops.tree_attention import TreeBatch, query_visibility


def packed_entries(kv_cache: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values of vLLM's CPU cache, as views of [blocks, kv_heads, block_size, head_size] each.

    In the memory of `kv_cache` [blocks, kv_heads, block_size, 2 * head_size] the keys of a block and head come first,
    as [head_size, block_size], then its values as [block_size, head_size] (vLLM, csrc/cpu/cpu_attn_vec.hpp).
    """
    num_blocks, num_kv_heads, block_size, width = kv_cache.shape
    keys, values = kv_cache.view(num_blocks, num_kv_heads, -1).chunk(2, dim=2)
    shape = num_blocks, num_kv_heads
    return keys.view(*shape, width // 2, block_size).transpose(2, 3), values.view(*shape, block_size, width // 2)


def packed_attention(
    query: Tensor,  # [tokens, heads, head_size]
    kv_cache: Tensor,  # [num_blocks, kv_heads, block_size, 2 * head_size], see `packed_entries`
    batch: TreeBatch,
    scale: float,
    out: Tensor,  # [tokens, heads, head_size]
) -> None:
    """Write the attention of all requests of a step; rows of no request keep the values of `out`."""
    group = query.shape[1] // kv_cache.shape[1]
    starts, lengths, num_drafts = (x.tolist() for x in (batch.query_start_loc, batch.seq_lens, batch.num_drafts))
    keys, values = packed_entries(kv_cache)
    for index, num_keys in enumerate(lengths):
        rows = slice(starts[index], starts[index + 1])
        query_len = rows.stop - rows.start
        if query_len == 0:
            continue
        drafts = batch.ancestors[index, : num_drafts[index], : num_drafts[index]]
        visible = query_visibility(query_len, num_keys, batch.seq_lens[index], drafts)
        mask = torch.zeros(visible.shape, dtype=query.dtype, device=query.device).masked_fill_(~visible, -torch.inf)
        pages = batch.block_table[index, : -(-num_keys // kv_cache.shape[2])].long()
        own_keys, own_values = (x[pages].transpose(0, 1).flatten(1, 2)[:, :num_keys] for x in (keys, values))
        # The query heads of one key head become rows of one attention: no key is copied per query head.
        grouped = query[rows].unflatten(1, (-1, group)).permute(1, 2, 0, 3).flatten(1, 2)
        mean = F.scaled_dot_product_attention(
            grouped[None], own_keys[None], own_values[None], attn_mask=mask.repeat(group, 1), scale=scale
        )
        out[rows] = mean[0].unflatten(1, (group, -1)).permute(2, 0, 1, 3).flatten(1, 2)
