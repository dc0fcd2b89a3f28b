# SPDX-License-Identifier: Apache-2.0
"""Tree attention against dense attention over each row's own, gathered keys."""

import math
import random

import pytest
import torch

from redrafter_vllm.ops.tree_attention import paged_attention, query_visibility


def random_parents(rng: random.Random, num_nodes: int) -> list[int]:
    return [rng.randrange(-1, node) for node in range(num_nodes)]


def path_of(parents: list[int], node: int) -> list[int]:
    return [] if node < 0 else [*path_of(parents, parents[node]), node]


def visible_slots(query_len: int, seq_len: int, parents: list[int], row: int) -> list[int]:
    """Storage positions that a query row attends to, worked out from the tree's definition."""
    first_node_row = query_len - len(parents)
    if row < first_node_row:
        return list(range(seq_len - query_len + row + 1))
    root = seq_len - len(parents) - 1
    return [*range(root + 1), *(root + 1 + node for node in path_of(parents, row - first_node_row))]


def ancestor_matrix(parents: list[int]) -> torch.Tensor:
    matrix = torch.zeros(len(parents), len(parents), dtype=torch.bool)
    for node in range(len(parents)):
        matrix[node, path_of(parents, node)] = True
    return matrix


def dense_row(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    weights = torch.softmax(keys.double() @ query.double() / math.sqrt(len(query)), dim=0)
    return weights @ values.double()


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
        out = paged_attention(
            query, cache, block_ids, seq_len, None if whole_prompt else visible, 1 / math.sqrt(head_size)
        )
        for row in range(query_len):
            slots = visible_slots(query_len, seq_len, parents, row)
            assert visible[row].nonzero()[:, 0].tolist() == slots
            for head in range(num_heads):
                kv_head = head * num_kv_heads // num_heads
                expected = dense_row(query[row, head], key[slots, kv_head], value[slots, kv_head])
                tolerance = 1e-5 if dtype == torch.float32 else 3e-2
                torch.testing.assert_close(out[row, head].double(), expected, atol=tolerance, rtol=tolerance)


def test_more_columns_than_keys_stay_hidden() -> None:
    """The host may only know an upper bound of the length; what lies beyond is never seen."""
    parents = [-1, -1, 0]
    exact = query_visibility(4, 10, torch.tensor(10), ancestor_matrix(parents))
    padded = query_visibility(4, 16, torch.tensor(10), ancestor_matrix(parents))
    assert torch.equal(padded[:, :10], exact)
    assert not padded[:, 10:].any()
