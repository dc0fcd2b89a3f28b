# SPDX-License-Identifier: Apache-2.0
"""KV compaction against copying the entries one by one from an unchanged original."""

import random
from collections.abc import Callable, Sequence

import pytest
import torch

from redrafter_vllm.ops.kv_compact import native, reference
from redrafter_vllm.ops.packed_attention import packed_entries
from tests.ops.native import needs_compiler

IMPLEMENTATIONS = [
    pytest.param(reference.kv_compact, id="torch"),
    pytest.param(native.kv_compact, id="native", marks=needs_compiler),
]
KvCompact = Callable[[Sequence[torch.Tensor], torch.Tensor, torch.Tensor, torch.Tensor], None]


@pytest.mark.parametrize("kv_compact", IMPLEMENTATIONS)
@pytest.mark.parametrize("is_packed", [False, True], ids=["side by side", "packed"])
@pytest.mark.parametrize("block_size", [1, 2, 16, 48])
@pytest.mark.parametrize("seed", range(4))
def test_paths_over_block_borders(kv_compact: KvCompact, block_size: int, seed: int, is_packed: bool) -> None:
    rng = random.Random(seed)
    num_nodes, depth, requests = 12, 5, 3
    blocks_each = -(-(num_nodes + 1 + block_size) // block_size)
    caches = [torch.randn(requests * blocks_each + 1, 2, block_size, 6) for _ in range(3)]
    if is_packed:
        caches = [entries for cache in caches for entries in packed_entries(cache)]
    originals = [cache.clone() for cache in caches]
    expected = [cache.clone() for cache in caches]
    pages = list(range(1, requests * blocks_each + 1))
    rng.shuffle(pages)
    paths, roots, slots = [], [], []
    for request in range(requests):
        own = pages[request * blocks_each :]
        start = rng.randrange(block_size)

        def slot(local: int, own: list[int] = own, start: int = start) -> int:
            return own[(start + local) // block_size] * block_size + (start + local) % block_size

        path = sorted(rng.sample(range(num_nodes), rng.randint(0, depth)))
        paths.append(path + [-1] * (depth - len(path)))
        # A prompt's tokens before the root's.
        slots += [0] * request
        roots.append(len(slots))
        slots += [slot(local) for local in range(num_nodes + 1)]
        for t, node in enumerate(path):
            for cache, original in zip(expected, originals, strict=True):
                old, new = slot(node + 1), slot(t + 1)
                cache[new // block_size, :, new % block_size] = original[old // block_size, :, old % block_size]
    kv_compact(caches, torch.tensor(paths), torch.tensor(roots), torch.tensor(slots))
    for cache, wanted in zip(caches, expected, strict=True):
        assert torch.equal(cache, wanted)


@pytest.mark.parametrize("kv_compact", IMPLEMENTATIONS)
def test_nothing_to_move_changes_nothing(kv_compact: KvCompact) -> None:
    cache = torch.randn(4, 2, 8, 6)
    before = cache.clone()
    slots = torch.arange(16, 24)
    kv_compact([cache], torch.full((2, 3), -1), torch.tensor([0, 4]), slots)
    assert torch.equal(cache, before)
    kv_compact([cache], torch.tensor([[0, 1, 2]]), torch.tensor([1]), slots)
    assert torch.equal(cache, before)
    none = torch.zeros(0, dtype=torch.long)
    kv_compact([cache], none.view(0, 3), none, none)
    assert torch.equal(cache, before)
