# SPDX-License-Identifier: Apache-2.0
"""Plain-torch tree attention over a paged cache, one request at a time."""

import torch
import torch.nn.functional as F
from torch import Tensor


def query_visibility(
    query_len: int,
    num_keys: int,
    seq_len: Tensor,  # scalar
    ancestors: Tensor,  # [n, n] bool
) -> Tensor:  # [query_len, num_keys] bool
    """Which cached keys each query of one request may see.

    The query ends with the root and its nodes (n rows, n = 1 + scheduled drafts, 1 without drafts); the rows before
    them are prompt tokens and causal. Nothing is read back to the host: `seq_len` stays on the device, and `num_keys`
    may be any upper bound of it.

    Args:
        query_len: Rows of this request in the step.
        num_keys: Columns wanted.
        seq_len: Tokens in the cache after this step, the query included.
        ancestors: For each scheduled draft the drafts on its path, itself included; without the root.
    """
    num_nodes = ancestors.shape[0]
    key_K = torch.arange(num_keys, device=ancestors.device)
    query_slot_Q = seq_len - query_len + torch.arange(query_len, device=ancestors.device)
    visible_QK = key_K <= query_slot_Q[:, None]
    if num_nodes == 0:
        return visible_QK
    # Among the drafts a key that is stored earlier is not yet an ancestor.
    draft_K = key_K - (seq_len - num_nodes)
    is_draft_K = (draft_K >= 0) & (draft_K < num_nodes)
    on_path_NK = ancestors[:, draft_K.clamp(0, num_nodes - 1)]
    visible_QK[query_len - num_nodes :] &= on_path_NK | ~is_draft_K
    return visible_QK


def paged_attention(
    query: Tensor,  # [Q, heads, head_size]
    kv_cache: Tensor,  # [num_blocks, kv_heads, block_size, 2 * head_size]
    block_ids: Tensor,  # [num_blocks of this request]
    num_keys: int,
    visible: Tensor | None,  # [Q, num_keys] bool
    scale: float,
) -> Tensor:  # [Q, heads, head_size]
    """Scaled dot-product attention of one request over its pages, grouped-query heads included.

    `visible` None means causal with the query as long as the keys (a prompt from its first token on).
    """
    query_len, num_heads, head_size = query.shape
    num_kv_heads = kv_cache.shape[1]
    pages = kv_cache[block_ids].transpose(0, 1).reshape(num_kv_heads, -1, 2 * head_size)
    key, value = pages[None, :, :num_keys].split(head_size, dim=-1)
    if visible is None:
        grouped = num_heads != num_kv_heads
        out = F.scaled_dot_product_attention(
            query.transpose(0, 1)[None], key, value, is_causal=True, scale=scale, enable_gqa=grouped
        )
        return out[0].transpose(0, 1)
    # The query heads of one key head become rows of one attention: no key is copied per query head.
    group = num_heads // num_kv_heads
    rows = query.view(query_len, num_kv_heads, group, head_size).permute(1, 2, 0, 3)
    rows = rows.reshape(1, num_kv_heads, group * query_len, head_size)
    mask = visible.expand(group, -1, -1).reshape(1, 1, group * query_len, num_keys)
    out = F.scaled_dot_product_attention(rows, key, value, attn_mask=mask, scale=scale)
    return out.view(num_kv_heads, group, query_len, head_size).permute(2, 0, 1, 3).reshape(query.shape)
