# SPDX-License-Identifier: Apache-2.0
"""Tree attention over vLLM's CPU cache: by plain torch and by the C++ kernel, against dense attention."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from redrafter_vllm.ops.packed_attention import native, packed_entries, reference
from redrafter_vllm.ops.tree_attention import TreeBatch
from tests.ops.attention_steps import MIXED, TOLERANCE, Step, ancestor_matrix, dense_row, visible_slots
from tests.ops.native import needs_compiler

Attention = Callable[[Tensor, Tensor, TreeBatch, float, Tensor], None]
IMPLEMENTATIONS = [
    pytest.param(reference.packed_attention, id="torch"),
    pytest.param(native.packed_attention, id="native", marks=needs_compiler),
]


def packed(cache: Tensor) -> Tensor:
    """A cache of keys and values side by side, [blocks, kv heads, block size, 2 * head size], in vLLM's CPU layout."""
    result = torch.empty_like(cache)
    for entries, side_by_side in zip(packed_entries(result), cache.chunk(2, dim=-1), strict=True):
        entries.copy_(side_by_side)
    return result


def test_entries_are_what_vllm_stores() -> None:
    from vllm import _custom_ops as ops

    num_blocks, num_kv_heads, block_size, head_size = 3, 2, 32, 64
    cache = torch.zeros(num_blocks, num_kv_heads, block_size, 2 * head_size)
    key, value = torch.randn(2, 40, num_kv_heads, head_size).unbind()
    slots = torch.randperm(num_blocks * block_size)[:40]
    parts = cache.view(num_blocks, num_kv_heads, 2 * block_size, head_size).chunk(2, dim=2)
    for isa in ("vec", "vec16"):
        cache.zero_()
        ops.cpu_attn_reshape_and_cache(key, value, *parts, slots, isa)
        for entries, stored in zip(packed_entries(cache), (key, value), strict=True):
            assert torch.equal(entries[slots // block_size, :, slots % block_size], stored)


@pytest.mark.parametrize("attention", IMPLEMENTATIONS)
@pytest.mark.parametrize("block_size", [16, 32, 48])
@pytest.mark.parametrize(("heads", "head_size"), [((4, 4), 80), ((6, 2), 32), ((9, 1), 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_against_dense_attention(
    attention: Attention, block_size: int, heads: tuple[int, int], head_size: int, dtype: torch.dtype
) -> None:
    step = Step(MIXED, heads, head_size, dtype, block_size)
    out = step.poisoned_out()
    attention(step.query, packed(step.cache), step.batch, step.scale, out)
    for index, query_len in enumerate(step.query_lens):
        for row in range(query_len):
            slots = visible_slots(query_len, step.seq_lens[index], step.parents[index], row)
            for head in range(heads[0]):
                entry = step.entries[index][slots, head * heads[1] // heads[0]]
                at = step.starts[index] + row
                expected = dense_row(step.query[at, head], *entry.chunk(2, dim=-1))
                tolerance = TOLERANCE[dtype]
                torch.testing.assert_close(out[at, head].double(), expected, atol=tolerance, rtol=tolerance)


@needs_compiler
@pytest.mark.parametrize("block_size", [16, 32])
@pytest.mark.parametrize("context", [0, 75])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_depend_on_nothing_but_their_visible_keys(dtype: torch.dtype, context: int, block_size: int) -> None:
    """A path of a tree as one chain, or token by token, gives the same bits, however wide the rest of the tree is."""
    torch.manual_seed(0)
    heads, kv_heads, size = 6, 2, 64
    parents = [-1, -1, 0, 1, 0, 2, 3, 4, 5, 5]
    path = [0, 2, 5, 9]
    num_slots = context + 1 + len(parents)
    pages = -(-num_slots // block_size)
    key, value = torch.randn(2, num_slots, kv_heads, size).to(dtype).unbind()
    query = torch.randn(1 + len(parents), heads, size).to(dtype)

    def run(nodes: list[int], parents: list[int], num_rows: int) -> Tensor:
        """Attention of the last `num_rows` of the root and these nodes, stored in this order behind the context."""
        stored = [*range(context + 1), *(context + 1 + node for node in nodes)]
        cache = torch.zeros(pages, kv_heads, block_size, 2 * size, dtype=dtype)
        for slot, source in enumerate(stored):
            cache[slot // block_size, :, slot % block_size] = torch.cat((key[source], value[source]), dim=-1)
        rows = query[[0, *(1 + node for node in nodes)]][-num_rows:]
        num_drafts = min(len(parents), num_rows - 1)
        batch = TreeBatch(
            block_table=torch.arange(pages, dtype=torch.int32)[None],
            query_start_loc=torch.tensor([0, num_rows], dtype=torch.int32),
            seq_lens=torch.tensor([len(stored)], dtype=torch.int32),
            ancestors=ancestor_matrix(parents)[None, :num_drafts, :num_drafts].contiguous(),
            num_drafts=torch.tensor([num_drafts], dtype=torch.int32),
            max_query_len=num_rows,
        )
        out = torch.empty_like(rows)
        native.packed_attention(rows, packed(cache), batch, size**-0.5, out)
        return out

    tree = run(list(range(len(parents))), parents, 1 + len(parents))
    chain = run(path, [-1, 0, 1, 2], 1 + len(path))
    assert torch.equal(tree[[0, *(1 + node for node in path)]], chain)
    for length in range(len(path) + 1):
        assert torch.equal(run(path[:length], [], 1)[0], chain[length])


@needs_compiler
def test_a_query_and_an_output_with_gaps() -> None:
    """vLLM's query is a part of a wider matrix."""
    step = Step(MIXED, (6, 2), 32, torch.float32)
    cache = packed(step.cache)
    num_tokens = step.query.shape[0]
    wide = torch.randn(num_tokens, 10, 32)
    wide[:, 2:8] = step.query
    expected = torch.full_like(step.query, 7.0)
    native.packed_attention(step.query, cache, step.batch, step.scale, expected)
    out = torch.full((num_tokens, 8, 32), 7.0)
    native.packed_attention(wide[:, 2:8], cache, step.batch, step.scale, out[:, 1:7])
    assert torch.equal(out[:, 1:7], expected)
    assert torch.equal(out[:, [0, 7]], torch.full_like(out[:, [0, 7]], 7.0))


@pytest.mark.parametrize(
    ("dtype", "block_size"), [(torch.float16, 32), (torch.float32, 8)], ids=["fp16", "narrow blocks"]
)
def test_what_the_kernel_leaves_to_torch(dtype: torch.dtype, block_size: int) -> None:
    step: Any = Step(MIXED, (2, 1), 32, dtype, block_size)
    assert not native.supports(step.query, step.cache, step.batch, step.scale, step.query)
