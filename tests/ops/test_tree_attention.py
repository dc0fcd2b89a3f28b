# SPDX-License-Identifier: Apache-2.0
"""Tree attention against dense attention over the gathered keys of each row."""

import math
import random

import pytest
import torch

from redrafter_vllm.ops.tree_attention import TreeBatch, grouped_mask, paged_attention, query_visibility, reference
from tests.ops.attention_steps import MIXED, Step, ancestor_matrix, dense_row, random_parents, visible_slots


@pytest.mark.parametrize("block_size", [1, 16, 48])
@pytest.mark.parametrize("heads", [(4, 4), (6, 2), (8, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_against_dense_attention(block_size: int, heads: tuple[int, int], dtype: torch.dtype) -> None:
    rng = random.Random(block_size * heads[0])
    torch.manual_seed(0)
    num_heads, num_kv_heads = heads
    head_size = 20
    for context, extra, num_nodes in [(0, 0, 1), (5, 0, 16), (31, 0, 7), (64, 9, 3), (17, 3, 0), (0, 12, 0)]:
        parents = random_parents(rng, num_nodes)
        query_len = extra + 1 + num_nodes
        seq_len = context + query_len
        num_blocks = -(-seq_len // block_size)
        cache = torch.full((num_blocks + 3, num_kv_heads, block_size, 2 * head_size), math.nan, dtype=dtype)
        block_ids = torch.randperm(num_blocks + 3)[:num_blocks]
        key = torch.randn(seq_len, num_kv_heads, head_size, dtype=dtype)
        value = torch.randn(seq_len, num_kv_heads, head_size, dtype=dtype)
        for slot in range(seq_len):
            page = cache[block_ids[slot // block_size]]
            page[:, slot % block_size] = torch.cat((key[slot], value[slot]), dim=-1)
        query = torch.randn(query_len, num_heads, head_size, dtype=dtype)
        visible = query_visibility(query_len, seq_len, torch.tensor(seq_len), ancestor_matrix(parents))
        whole_prompt = query_len == seq_len and num_nodes == 0
        mask = None if whole_prompt else grouped_mask(visible, num_heads // num_kv_heads, dtype)
        out = paged_attention(query, cache, block_ids, seq_len, mask, 1 / math.sqrt(head_size))
        for row in range(query_len):
            slots = visible_slots(query_len, seq_len, parents, row)
            assert visible[row].nonzero()[:, 0].tolist() == slots
            for head in range(num_heads):
                kv_head = head * num_kv_heads // num_heads
                expected = dense_row(query[row, head], key[slots, kv_head], value[slots, kv_head])
                tolerance = 1e-5 if dtype == torch.float32 else 3e-2
                torch.testing.assert_close(out[row, head].double(), expected, atol=tolerance, rtol=tolerance)


def test_more_columns_than_keys_stay_hidden() -> None:
    """The host may know only an upper bound of the length; keys beyond the length are never seen."""
    parents = [-1, -1, 0]
    exact = query_visibility(4, 10, torch.tensor(10), ancestor_matrix(parents))
    padded = query_visibility(4, 16, torch.tensor(10), ancestor_matrix(parents))
    assert torch.equal(padded[:, :10], exact)
    assert not padded[:, 10:].any()


@pytest.mark.parametrize("heads", [(2, 2), (6, 2)])
def test_a_whole_step_against_dense_attention(heads: tuple[int, int]) -> None:
    step = Step(MIXED, heads, 20, torch.float32)
    out = reference.tree_attention(step.query, step.cache, step.batch, step.scale, out=step.poisoned_out())
    for index, query_len in enumerate(step.query_lens):
        for row in range(query_len):
            slots = visible_slots(query_len, step.seq_lens[index], step.parents[index], row)
            for head in range(heads[0]):
                entry = step.entries[index][slots, head * heads[1] // heads[0]]
                at = step.starts[index] + row
                expected = dense_row(step.query[at, head].cpu(), *entry.chunk(2, dim=-1))
                torch.testing.assert_close(out[at, head].double().cpu(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("change", [{"num_drafts": 3}, {"query_start_loc": 2}, {"block_table": 1}])
def test_a_batch_of_unequal_rows(change: dict[str, int]) -> None:
    step = Step([(4, 0, 2), (1, 0, 0)], (1, 1), 16, torch.float32)
    fields = vars(step.batch) | {name: getattr(step.batch, name).new_zeros(n) for name, n in change.items()}
    with pytest.raises(ValueError, match="must have"):
        TreeBatch(**fields)
