# SPDX-License-Identifier: Apache-2.0
"""Random steps for tests of tree attention, and attention by its definition."""

import math
import random

import torch
from torch import Tensor

from redrafter_vllm.ops.tree_attention import TreeBatch
from tests.ops.devices import DEVICE

# Against fp32 computation; weights and results of 16-bit types are rounded to 11 and 8 bits.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
# Context length, prompt tokens before the root, drafts. An empty query is padding of the batch.
Request = tuple[int, int, int]
MIXED: list[Request | None] = [(37, 0, 5), None, (0, 0, 3), (21, 2, 0), (64, 0, 0), (0, 3, 2)]


def random_parents(rng: random.Random, num_nodes: int) -> list[int]:
    return [rng.randrange(-1, node) for node in range(num_nodes)]


def path_of(parents: list[int], node: int) -> list[int]:
    return [] if node < 0 else [*path_of(parents, parents[node]), node]


def visible_slots(query_len: int, seq_len: int, parents: list[int], row: int) -> list[int]:
    """Storage positions that a query row attends to, by the tree's definition."""
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


class Step:
    """Random requests over pages in random order; all values that belong to no request are NaN."""

    def __init__(
        self, requests: list[Request | None], heads: tuple[int, int], head_size: int, dtype: torch.dtype,
        block_size: int = 16, cache_dtype: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        self.heads, self.requests = heads, requests
        rng, generator = random.Random(1), torch.Generator().manual_seed(head_size + len(requests))
        self.query_lens = [0 if r is None else r[1] + 1 + r[2] for r in requests]
        self.seq_lens = [0 if r is None else r[0] + n for r, n in zip(requests, self.query_lens, strict=True)]
        self.parents = [[] if r is None else random_parents(rng, r[2]) for r in requests]
        max_drafts = max(map(len, self.parents)) + 1
        ancestors = torch.ones(len(requests), max_drafts, max_drafts, dtype=torch.bool)
        for index, parents in enumerate(self.parents):
            ancestors[index, : len(parents), : len(parents)] = ancestor_matrix(parents)

        pages = [-(-n // block_size) for n in self.seq_lens]
        free = random.Random(2).sample(range(sum(pages) + 2), sum(pages))
        table = torch.full((len(requests), max(pages) + 1), 2**30, dtype=torch.int32)
        stored = cache_dtype or dtype
        cache = torch.full((sum(pages) + 2, heads[1], block_size, 2 * head_size), math.nan).to(stored)
        self.entries: list[Tensor] = []
        for index, count in enumerate(pages):
            own = [free.pop() for _ in range(count)]
            table[index, :count] = torch.tensor(own, dtype=torch.int32)
            entry = torch.randn(self.seq_lens[index], heads[1], 2 * head_size, generator=generator).to(stored)
            self.entries.append(entry.float())
            for slot in range(self.seq_lens[index]):
                cache[own[slot // block_size], :, slot % block_size] = entry[slot]
        self.cache = (cache.view(torch.uint8) if stored == torch.float8_e4m3fn else cache).to(DEVICE)
        starts = torch.tensor([0, *self.query_lens]).cumsum(0)
        query = torch.randn(int(starts[-1]) + 2, heads[0], head_size, generator=generator)
        self.query = query.to(dtype).to(DEVICE)
        self.starts = starts.tolist()
        self.batch = TreeBatch(
            block_table=table.to(DEVICE),
            query_start_loc=starts.int().to(DEVICE),
            seq_lens=torch.tensor(self.seq_lens, dtype=torch.int32, device=DEVICE),
            ancestors=ancestors.to(DEVICE),
            num_drafts=torch.tensor([len(p) for p in self.parents], dtype=torch.int32, device=DEVICE),
            max_query_len=max(self.query_lens) + 3,
        )
        self.scale = 1 / math.sqrt(head_size)

    def poisoned_out(self) -> Tensor:
        return torch.full_like(self.query, -777)

    def check(self, out: Tensor, expected: Tensor) -> None:
        """Rows of requests are close to the expected ones; the others keep their poison."""
        tolerance = TOLERANCE[self.query.dtype]
        assert (out[self.starts[-1] :] == -777).all()
        torch.testing.assert_close(out.float(), expected.float(), atol=tolerance, rtol=tolerance)
