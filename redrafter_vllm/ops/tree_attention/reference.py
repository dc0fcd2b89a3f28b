# SPDX-License-Identifier: Apache-2.0
"""Plain-torch tree attention over a paged cache of keys and values side by side, one request at a time."""

from dataclasses import dataclass
from itertools import pairwise

import torch
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
        num_keys: Columns of the result.
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


@dataclass(frozen=True)
class TreeBatch:
    """The layout of one step, shared by all layers.

    A request's query ends with its root and drafts; its keys and values are already in the cache.
    """

    block_table: Tensor  # [B, pages] int32
    query_start_loc: Tensor  # [B + 1] int32
    seq_lens: Tensor  # [B] int32, tokens in the cache after this step, the query included
    ancestors: Tensor  # [B, N, N] bool, a draft's path, itself included
    num_drafts: Tensor  # [B] int32, at most N and less than the request's query
    max_query_len: int  # an upper bound

    def __post_init__(self) -> None:
        batch = self.seq_lens.shape[0]
        shapes = {"block_table": 2, "query_start_loc": 1, "seq_lens": 1, "ancestors": 3, "num_drafts": 1}
        for name, dimensions in shapes.items():
            shape, rows = getattr(self, name).shape, batch + (name == "query_start_loc")
            if len(shape) != dimensions or shape[0] != rows:
                raise ValueError(f"{name} must have {dimensions} dimensions and {rows} rows, not shape {list(shape)}")
        if self.ancestors.shape[1] != self.ancestors.shape[2]:
            raise ValueError(f"ancestors must be [B, N, N], not {list(self.ancestors.shape)}")


def tree_attention(
    query: Tensor,  # [tokens, heads, head_size]
    kv_cache: Tensor,  # [num_blocks, kv_heads, block_size, 2 * head_size]
    batch: TreeBatch,
    scale: float,
    k_scale: Tensor | None = None,  # scalar fp32
    v_scale: Tensor | None = None,  # scalar fp32
    out: Tensor | None = None,  # [tokens, heads, head_size]
) -> Tensor:  # [tokens, heads, head_size]
    """Attention of all requests of a step; rows of no request keep the values of `out`.

    A cache of float8_e4m3fn, or of its bytes, is multiplied by its scales. Computes in fp32 and reads the
    lengths on the host: for tests; serving without a GPU uses `ops.packed_attention`.
    """
    context, log_sum = attend_context(query, kv_cache, batch, scale, k_scale, v_scale)
    return attend_nodes(query, kv_cache, batch, context, log_sum, scale, k_scale, v_scale, out)


def attend_context(
    query: Tensor,
    kv_cache: Tensor,
    batch: TreeBatch,
    scale: float,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # [1, tokens, heads, head_size] fp32, [1, heads, tokens] fp32
    """Attention to the keys that were cached before the query, with the natural log of the sum of exponentials.

    Without such keys the latter is minus infinity and the former undefined.
    """
    out = torch.zeros(1, *query.shape, dtype=torch.float32, device=query.device)
    log_sum = torch.full((1, query.shape[1], query.shape[0]), -torch.inf, device=query.device)
    for index, rows, context_len in _requests(batch):
        key, value = _keys_and_values(kv_cache, batch.block_table[index], 0, context_len, k_scale, v_scale)
        everything = torch.ones(rows.stop - rows.start, context_len, dtype=torch.bool, device=query.device)
        out[0, rows], log_sum[0, :, rows] = _attend(query[rows], key, value, everything, scale)
    return out, log_sum


def attend_nodes(
    query: Tensor,
    kv_cache: Tensor,
    batch: TreeBatch,
    context: Tensor,  # [S, tokens, heads, head_size]
    context_log_sum: Tensor,  # [S, heads, tokens] fp32
    scale: float,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    out: Tensor | None = None,
    q_scale: Tensor | None = None,
) -> Tensor:
    """Attention of the query to itself, merged with that to S parts of the context.

    A query of float8_e4m3fn, which some kernels of the context need, is multiplied by its scale; `out` then has the
    context's type. A part whose log-sum is infinite, of either sign, is empty: kernels differ in which sign they write.
    """
    is_fp8 = query.dtype in (torch.float8_e4m3fn, torch.uint8)
    if out is None:
        out = torch.empty_like(query, dtype=context.dtype if is_fp8 else query.dtype)
    if is_fp8:
        query = query.view(torch.float8_e4m3fn).float() * (1.0 if q_scale is None else q_scale)
    for index, rows, context_len in _requests(batch):
        query_len, num_drafts = rows.stop - rows.start, int(batch.num_drafts[index])
        seq_len = context_len + query_len
        key, value = _keys_and_values(kv_cache, batch.block_table[index], context_len, seq_len, k_scale, v_scale)
        drafts = batch.ancestors[index, :num_drafts, :num_drafts]
        visible = query_visibility(query_len, seq_len, batch.seq_lens[index], drafts)[:, context_len:]
        nodes, node_log_sum = _attend(query[rows], key, value, visible, scale)
        log_sum = torch.cat((context_log_sum[:, :, rows], node_log_sum[None]))
        weight = log_sum.masked_fill(log_sum.isinf(), -torch.inf).softmax(0).transpose(1, 2).unsqueeze(-1)
        parts = torch.cat((context[:, rows].float(), nodes[None]))
        out[rows] = torch.where(weight > 0, weight * parts, 0.0).sum(0).to(out.dtype)
    return out


def _requests(batch: TreeBatch) -> list[tuple[int, slice, int]]:
    """Index, rows and context length of each request that has a query."""
    starts, lengths = batch.query_start_loc.tolist(), batch.seq_lens.tolist()
    return [
        (index, slice(start, end), lengths[index] - (end - start))
        for index, (start, end) in enumerate(pairwise(starts))
        if end > start
    ]


def _keys_and_values(
    kv_cache: Tensor, block_ids: Tensor, first: int, end: int, k_scale: Tensor | None, v_scale: Tensor | None
) -> tuple[Tensor, Tensor]:  # [kv_heads, end - first, head_size] fp32 each
    slot = torch.arange(first, end, device=kv_cache.device)
    block_size = kv_cache.shape[2]
    entries = kv_cache[block_ids[slot // block_size].long(), :, slot % block_size]
    if entries.dtype == torch.uint8:
        entries = entries.view(torch.float8_e4m3fn)
    key, value = entries.float().transpose(0, 1).chunk(2, dim=-1)
    return key * (1.0 if k_scale is None else k_scale), value * (1.0 if v_scale is None else v_scale)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, visible: Tensor, scale: float
) -> tuple[Tensor, Tensor]:  # [Q, heads, head_size], [heads, Q]
    group = query.shape[1] // key.shape[0]
    score = query.float().transpose(0, 1) @ key.repeat_interleave(group, 0).transpose(1, 2) * scale
    score = score.masked_fill(~visible, -torch.inf)
    log_sum = score.logsumexp(-1)
    weight = torch.exp(score - log_sum.unsqueeze(-1))
    return (weight @ value.repeat_interleave(group, 0)).transpose(0, 1), log_sum
