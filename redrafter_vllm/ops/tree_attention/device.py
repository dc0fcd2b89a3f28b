# SPDX-License-Identifier: Apache-2.0
# mypy: disable-error-code="no-untyped-def"
"""The kernels of tree attention; `kernel` launches them.

`context_kernel` splits the context among programs, each of which writes its weighted mean and log-sum.
`nodes_kernel` attends to the query's own keys under the ancestor mask and merges these parts, or those of another
kernel for the context. The query heads that share a key head are rows of one matrix.
"""

import triton
import triton.language as tl

_LOG2_E = tl.constexpr(1.4426950408889634)
# Below all scores but finite, so that differences from it are not NaN.
_LOWEST = tl.constexpr(-1.0e30)
# The interpreter multiplies the bit patterns of bf16.
_INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def _rows_of(query_start_ptr, request, num_kv_heads, GROUP: tl.constexpr, ROWS: tl.constexpr):
    """First token and length of the request's query, key head of this program, token and head of its rows."""
    start = tl.load(query_start_ptr + request)
    query_len = tl.load(query_start_ptr + request + 1) - start
    kv_head = tl.program_id(0) % num_kv_heads
    row = tl.program_id(0) // num_kv_heads * ROWS + tl.arange(0, ROWS)
    return start, query_len, kv_head, row // GROUP, kv_head * GROUP + row % GROUP


@triton.jit
def _decoded(entry, dtype: tl.constexpr, FP8: tl.constexpr):
    """Bytes as e4m3: shifted, they are fp16 of 2^-8 the value. Done by hand because capability 8.0 lacks the type."""
    if FP8:
        bits = ((entry & 0x80).to(tl.uint16) << 8) | ((entry & 0x7F).to(tl.uint16) << 7)
        entry = (bits.to(tl.float16, bitcast=True) * 256.0).to(dtype)
    return entry


@triton.jit
def _plus_product(sum_, left, right):
    """`sum_` plus the matrix product, both in fp32."""
    if _INTERPRETED:
        left, right = left.to(tl.float32), right.to(tl.float32)
    return tl.dot(left, right, sum_, input_precision="ieee")


@triton.jit
def _absorb(
    query,  # [ROWS, HEAD_PAD]
    mean,  # [ROWS, HEAD_PAD] fp32, times `total`
    highest,  # [ROWS] fp32, of scores in base 2
    total,  # [ROWS] fp32
    visible,  # [ROWS, KEYS] or [1, KEYS]
    slot,  # [KEYS] storage position
    slot_ok,  # [KEYS]
    head_ptr,  # the cache at this key head
    cache_block_stride,
    cache_slot_stride,
    pages_ptr,
    score_scale,
    BLOCK_SIZE: tl.constexpr,
    HEAD: tl.constexpr,
    HEAD_PAD: tl.constexpr,
    FP8: tl.constexpr,
):
    """Adds one tile of keys to the running softmax."""
    page = tl.load(pages_ptr + slot // BLOCK_SIZE, mask=slot_ok, other=0).to(tl.int64)
    place = page * cache_block_stride + (slot % BLOCK_SIZE).to(tl.int64) * cache_slot_stride
    dim = tl.arange(0, HEAD_PAD)
    entry_ptr = head_ptr + place[:, None] + dim[None, :]
    entry_ok = slot_ok[:, None] & (dim < HEAD)[None, :]
    key = _decoded(tl.load(entry_ptr, mask=entry_ok, other=0), query.dtype, FP8)
    score = tl.zeros([query.shape[0], key.shape[0]], tl.float32)
    score = _plus_product(score, query, tl.trans(key)) * score_scale
    score = tl.where(visible, score, -float("inf"))
    new_highest = tl.maximum(highest, tl.max(score, axis=1))
    weight = tl.exp2(score - new_highest[:, None])
    shrink = tl.exp2(highest - new_highest)
    total = total * shrink + tl.sum(weight, axis=1)
    value = _decoded(tl.load(entry_ptr + HEAD, mask=entry_ok, other=0), query.dtype, FP8)
    mean = _plus_product(mean * shrink[:, None], weight.to(query.dtype), value)
    return mean, new_highest, total


@triton.jit
def context_kernel(
    context_ptr,  # [S, tokens, heads, head_size] fp32
    log_sum_ptr,  # [S, heads, tokens] fp32
    num_tokens,
    query_ptr,  # [tokens, heads, head_size]
    query_token_stride,
    query_head_stride,
    cache_ptr,  # [num_blocks, kv_heads, block_size, 2 * head_size]
    cache_block_stride,
    cache_head_stride,
    cache_slot_stride,
    table_ptr,  # [B, pages]
    table_stride,
    query_start_ptr,  # [B + 1]
    seq_lens_ptr,  # [B]
    k_scale_ptr,
    v_scale_ptr,
    scale,
    num_kv_heads,
    GROUP: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HEAD: tl.constexpr,
    HEAD_PAD: tl.constexpr,
    FP8: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
):
    request = tl.program_id(1)
    split = tl.program_id(2)
    start, query_len, kv_head, token, head = _rows_of(query_start_ptr, request, num_kv_heads, GROUP, ROWS)
    if tl.program_id(0) // num_kv_heads * ROWS >= query_len * GROUP:
        return
    row_ok = token < query_len
    query_row = (start + token).to(tl.int64)
    num_heads = num_kv_heads * GROUP
    log_sum_ptr += (split.to(tl.int64) * num_heads + head) * num_tokens + query_row

    context_len = tl.load(seq_lens_ptr + request) - query_len
    part_len = tl.cdiv(tl.cdiv(context_len, KEYS), tl.num_programs(2)) * KEYS
    first = split * part_len
    end = tl.minimum(first + part_len, context_len)
    if first >= end:
        tl.store(log_sum_ptr, tl.full([ROWS], -float("inf"), tl.float32), mask=row_ok)
        return

    dim = tl.arange(0, HEAD_PAD)
    out_ok = row_ok[:, None] & (dim < HEAD)[None, :]
    query_at = query_row * query_token_stride + head * query_head_stride
    query = tl.load(query_ptr + query_at[:, None] + dim[None, :], mask=out_ok, other=0)
    score_scale = scale * _LOG2_E
    if k_scale_ptr is not None:
        score_scale *= tl.load(k_scale_ptr)
    mean = tl.zeros([ROWS, HEAD_PAD], tl.float32)
    highest = tl.full([ROWS], _LOWEST, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    head_ptr = cache_ptr + kv_head.to(tl.int64) * cache_head_stride
    pages_ptr = table_ptr + request.to(tl.int64) * table_stride
    for tile in range(first, end, KEYS):
        slot = tile + tl.arange(0, KEYS)
        slot_ok = slot < end
        mean, highest, total = _absorb(
            query, mean, highest, total, slot_ok[None, :], slot, slot_ok, head_ptr, cache_block_stride,
            cache_slot_stride, pages_ptr, score_scale, BLOCK_SIZE, HEAD, HEAD_PAD, FP8,
        )  # fmt: skip
    mean = mean / total[:, None]
    if v_scale_ptr is not None:
        mean *= tl.load(v_scale_ptr)
    context_at = ((split.to(tl.int64) * num_tokens + query_row) * num_heads + head) * HEAD
    tl.store(context_ptr + context_at[:, None] + dim[None, :], mean, mask=out_ok)
    tl.store(log_sum_ptr, (highest + tl.log2(total)) / _LOG2_E, mask=row_ok)


@triton.jit
def nodes_kernel(
    out_ptr,  # [tokens, heads, head_size]
    out_token_stride,
    out_head_stride,
    context_ptr,  # [S, tokens, heads, head_size]
    context_part_stride,
    context_token_stride,
    context_head_stride,
    log_sum_ptr,  # [S, heads, tokens] fp32
    log_sum_part_stride,
    log_sum_head_stride,
    num_parts,
    ancestors_ptr,  # [B, N, N] bytes
    ancestors_stride,
    ancestors_row_stride,
    num_drafts_ptr,  # [B]
    query_ptr,  # [tokens, heads, head_size]
    query_token_stride,
    query_head_stride,
    cache_ptr,  # [num_blocks, kv_heads, block_size, 2 * head_size]
    cache_block_stride,
    cache_head_stride,
    cache_slot_stride,
    table_ptr,  # [B, pages]
    table_stride,
    query_start_ptr,  # [B + 1]
    seq_lens_ptr,  # [B]
    q_scale_ptr,
    k_scale_ptr,
    v_scale_ptr,
    scale,
    num_kv_heads,
    GROUP: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HEAD: tl.constexpr,
    HEAD_PAD: tl.constexpr,
    FP8: tl.constexpr,
    FP8_QUERY: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
):
    request = tl.program_id(1)
    start, query_len, kv_head, token, head = _rows_of(query_start_ptr, request, num_kv_heads, GROUP, ROWS)
    first_row = tl.program_id(0) // num_kv_heads * ROWS
    if first_row >= query_len * GROUP:
        return
    row_ok = token < query_len
    query_row = (start + token).to(tl.int64)
    dim = tl.arange(0, HEAD_PAD)
    out_ok = row_ok[:, None] & (dim < HEAD)[None, :]
    query_at = query_row * query_token_stride + head * query_head_stride
    query = tl.load(query_ptr + query_at[:, None] + dim[None, :], mask=out_ok, other=0)
    query = _decoded(query, out_ptr.dtype.element_ty, FP8_QUERY)
    score_scale = scale * _LOG2_E
    if q_scale_ptr is not None:
        score_scale *= tl.load(q_scale_ptr)
    if k_scale_ptr is not None:
        score_scale *= tl.load(k_scale_ptr)

    mean = tl.zeros([ROWS, HEAD_PAD], tl.float32)
    highest = tl.full([ROWS], _LOWEST, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    context_len = tl.load(seq_lens_ptr + request) - query_len
    first_node = query_len - tl.load(num_drafts_ptr + request)
    ancestors_ptr += request.to(tl.int64) * ancestors_stride
    head_ptr = cache_ptr + kv_head.to(tl.int64) * cache_head_stride
    pages_ptr = table_ptr + request.to(tl.int64) * table_stride
    end = tl.minimum(query_len, (first_row + ROWS - 1) // GROUP + 1)
    for tile in range(0, end, KEYS):
        key = tile + tl.arange(0, KEYS)
        # A padded request may have a query but no cached tokens.
        key_ok = (key < query_len) & (context_len + key >= 0)
        visible = (key[None, :] <= token[:, None]) & key_ok[None, :]
        # Among drafts an earlier one need not be an ancestor.
        row_node = (token - first_node)[:, None]
        key_node = (key - first_node)[None, :]
        drafts = visible & row_ok[:, None] & (row_node >= 0) & (key_node >= 0)
        on_path = tl.load(ancestors_ptr + row_node * ancestors_row_stride + key_node, mask=drafts, other=0)
        visible = visible & ((on_path != 0) | ~drafts)
        mean, highest, total = _absorb(
            query, mean, highest, total, visible, context_len + key, key_ok, head_ptr, cache_block_stride,
            cache_slot_stride, pages_ptr, score_scale, BLOCK_SIZE, HEAD, HEAD_PAD, FP8,
        )  # fmt: skip
    # The parts of the context are already multiplied by the values' scale.
    if v_scale_ptr is not None:
        mean *= tl.load(v_scale_ptr)

    log_sum_at = head * log_sum_head_stride + query_row
    context_at = query_row * context_token_stride + head * context_head_stride
    for _ in range(num_parts):
        log_sum = tl.load(log_sum_ptr + log_sum_at, mask=row_ok, other=-float("inf"))
        filled = tl.abs(log_sum) < float("inf")
        log_sum = tl.where(filled, log_sum * _LOG2_E, _LOWEST)
        new_highest = tl.maximum(highest, log_sum)
        weight = tl.where(filled, tl.exp2(log_sum - new_highest), 0.0)
        shrink = tl.exp2(highest - new_highest)
        part_ptr = context_ptr + context_at[:, None] + dim[None, :]
        part_mean = tl.load(part_ptr, mask=out_ok & filled[:, None], other=0).to(tl.float32)
        mean = mean * shrink[:, None] + part_mean * weight[:, None]
        total = total * shrink + weight
        highest = new_highest
        log_sum_ptr += log_sum_part_stride
        context_ptr += context_part_stride
    out_at = query_row * out_token_stride + head * out_head_stride
    mean = mean / total[:, None]
    tl.store(out_ptr + out_at[:, None] + dim[None, :], mean.to(out_ptr.dtype.element_ty), mask=out_ok)
