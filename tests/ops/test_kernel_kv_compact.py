# SPDX-License-Identifier: Apache-2.0
"""The compaction kernel against its reference, bit for bit: layouts of caches, element types, block borders."""

import random

import pytest
import torch

from redrafter_vllm.ops.kv_compact import reference
from tests.ops.devices import DEVICE, runs_kernels

pytestmark = runs_kernels


def random_bits(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    """Arbitrary bits, which include all kinds of NaN."""
    as_bytes = torch.randint(256, (*shape[:-1], shape[-1] * dtype.itemsize), dtype=torch.uint8, device=DEVICE)
    return as_bytes.view(dtype)


def random_moves(block_size: int, num_nodes: int, depth: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Slots of three requests, each with a path through its own tree, and the number of blocks they use."""
    rng = random.Random(seed)
    blocks_each = -(-(num_nodes + 1 + block_size) // block_size)
    pages = list(range(1, 3 * blocks_each + 1))
    rng.shuffle(pages)
    source, target = [], []
    for request, length in enumerate([0, depth, rng.randint(0, depth)]):
        own = pages[request * blocks_each : (request + 1) * blocks_each]
        start = rng.randrange(block_size)
        slots = [own[(start + n) // block_size] * block_size + (start + n) % block_size for n in range(num_nodes + 1)]
        path = sorted(rng.sample(range(num_nodes), length))
        source.append([slots[path[t] + 1] if t < length else slots[0] for t in range(depth)])
        target.append([slots[t + 1] if t < length else slots[0] for t in range(depth)])
    return torch.tensor(source, device=DEVICE), torch.tensor(target, device=DEVICE), 3 * blocks_each + 1


def as_paths(source: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Moves between any slots [B, T] as paths: each request's tokens are a root, T targets and T sources.

    Where source and target are one slot, nothing moves, which a path can say in its own way as well.
    """
    num_reqs, depth = source.shape
    path = torch.arange(depth, 2 * depth, device=DEVICE).repeat(num_reqs, 1)
    path[1::2] = torch.where(source[1::2] == target[1::2], -1, path[1::2])
    slots = torch.cat((target[:, :1], target, source), 1).flatten()
    return path, torch.arange(num_reqs, device=DEVICE) * (1 + 2 * depth), slots


def check(caches: list[torch.Tensor], source: torch.Tensor, target: torch.Tensor) -> None:
    """Compares the caches' whole storages, so that a stray write outside a view is seen."""
    from redrafter_vllm.ops.kv_compact import kernel

    wanted = [_copy(x) for x in caches]
    reference.kv_compact([_as_integers(x) for x in wanted], *as_paths(source, target))
    kernel.kv_compact(caches, *as_paths(source, target))
    for mine, theirs in zip(caches, wanted, strict=True):
        assert torch.equal(_storage(mine), _storage(theirs))


def _copy(x: torch.Tensor) -> torch.Tensor:
    """A copy of the whole storage of `x`, with the same view."""
    storage = _storage(x).clone().untyped_storage()
    return torch.empty(0, dtype=x.dtype, device=x.device).set_(storage, x.storage_offset(), x.shape, x.stride())


def _as_integers(x: torch.Tensor) -> torch.Tensor:
    return x.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[x.dtype.itemsize])


def _storage(x: torch.Tensor) -> torch.Tensor:
    return torch.empty(0, dtype=torch.uint8, device=x.device).set_(x.untyped_storage())


@pytest.mark.parametrize("block_size", [16, 48, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.uint8, torch.float8_e4m3fn])
def test_every_element_type(block_size: int, dtype: torch.dtype) -> None:
    source, target, num_blocks = random_moves(block_size, 12, 5, seed=block_size)
    check([random_bits(num_blocks, 2, block_size, 24, dtype=dtype) for _ in range(3)], source, target)


@pytest.mark.parametrize(("num_nodes", "depth"), [(1, 1), (2, 2), (33, 7), (128, 16), (128, 128)])
def test_small_and_full_trees(num_nodes: int, depth: int) -> None:
    source, target, num_blocks = random_moves(16, num_nodes, depth, seed=num_nodes + depth)
    check([random_bits(num_blocks, 1, 16, 40, dtype=torch.bfloat16) for _ in range(2)], source, target)


@pytest.mark.parametrize(
    "order",
    [(0, 1, 2, 3), (0, 2, 1, 3), (1, 0, 2, 3), (0, 1, 3, 2)],
    ids=["heads_first", "tokens_first", "heads_outermost", "width_inside"],
)
@pytest.mark.parametrize("width", [7, 36])
def test_any_order_in_memory(order: tuple[int, ...], width: int) -> None:
    source, target, num_blocks = random_moves(16, 9, 4, seed=width)
    shape = (num_blocks, 3, 16, width)
    stored = [random_bits(*(shape[i] for i in order), dtype=torch.float16) for _ in range(2)]
    back = [order.index(i) for i in range(4)]
    check([x.permute(back) for x in stored], source, target)


def test_keys_and_values_of_one_tensor_and_layers_of_two_layouts() -> None:
    source, target, num_blocks = random_moves(16, 9, 4, seed=1)
    both = random_bits(num_blocks, 2, 16, 2, 8, dtype=torch.bfloat16)
    caches = [x.transpose(1, 2) for x in both.unbind(1)]
    wide = random_bits(num_blocks, 5, 16, 12, dtype=torch.float32)
    odd = random_bits(num_blocks * 16 * 6 + 1, dtype=torch.bfloat16)[1:].view(num_blocks, 2, 16, 3)
    from redrafter_vllm.ops.kv_compact import kernel

    assert len(kernel.layer_groups([*caches, wide, odd])) == 3
    check([caches[0]], source, target)
    check([wide, odd], source, target)
    expected = both.clone()
    reference.kv_compact([_as_integers(x.transpose(1, 2)) for x in expected.unbind(1)], *as_paths(source, target))
    kernel.kv_compact(caches, *as_paths(source, target))
    assert torch.equal(both.view(torch.int16), expected.view(torch.int16))


def test_a_swap_within_a_request_reads_before_it_writes() -> None:
    source, target = torch.tensor([[3, 20, 7]], device=DEVICE), torch.tensor([[20, 3, 8]], device=DEVICE)
    check([random_bits(2, 2, 16, 8, dtype=torch.float16)], source, target)


def test_nothing_to_do() -> None:
    cache = random_bits(4, 2, 16, 8, dtype=torch.float16)
    slots = torch.full((2, 3), 17, device=DEVICE)
    check([cache], slots, slots.clone())
    check([cache], slots[:0], slots[:0])
    check([cache], slots[:, :0], slots[:, :0])


def test_slots_in_int32_and_paths_in_columns() -> None:
    from redrafter_vllm.ops.kv_compact import kernel

    source, target, num_blocks = random_moves(16, 9, 4, seed=3)
    cache = random_bits(num_blocks, 2, 16, 8, dtype=torch.float16)
    wanted = cache.clone()
    path, root_token, slots = as_paths(source, target)
    reference.kv_compact([_as_integers(wanted)], path, root_token, slots)
    kernel.kv_compact([cache], path.t().contiguous().t(), root_token, slots.int())
    assert torch.equal(_storage(cache), _storage(wanted))


def test_offsets_beyond_two_billion() -> None:
    from redrafter_vllm.ops.kv_compact import kernel

    # Only the pages of the four slots are touched, so only they take memory.
    cache = torch.empty(2**27 + 3, 1, 16, 1, dtype=torch.uint8, device=DEVICE)
    last = (cache.shape[0] - 1) * 16
    # In int64 as vLLM has them; the block's offset overflows int32 although the block's number does not.
    source = torch.tensor([[last + 5, 3]], device=DEVICE)
    target = torch.tensor([[2, last + 1]], device=DEVICE)
    cache[-1, :, 5], cache[0, :, 3] = 7, 9
    kernel.kv_compact([cache], *as_paths(source, target))
    assert cache[0, :, 2].eq(7).all() and cache[-1, :, 1].eq(9).all()


def test_addresses_are_found_once() -> None:
    from redrafter_vllm.ops.kv_compact import kernel

    caches = [random_bits(2, 1, 16, 8, dtype=torch.float16) for _ in range(2)]
    assert kernel.layer_groups(caches)[0].addresses is kernel.layer_groups(caches)[0].addresses
