# SPDX-License-Identifier: Apache-2.0
"""The kernels of prefix trees and ancestor masks against their references, bit for bit."""

import random

import pytest
import torch

from redrafter_vllm.ops.prefix_tree import native, reference
from tests.ops.devices import DEVICE, assert_equal, poisoned, runs_kernels

pytestmark = runs_kernels

Beams = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # tokens, parents, scores: [B, T, W]


def check(beams: Beams, max_nodes: int, beam_limit: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
    from redrafter_vllm.ops.prefix_tree import kernel

    wanted = reference.prefix_tree(*beams, max_nodes, beam_limit)
    out = kernel.TreeArrays(*(poisoned(*x.shape, dtype=x.dtype) for x in wanted))
    kernel.prefix_tree_into(out, *beams, beam_limit)
    made = kernel.prefix_tree(*beams, max_nodes, beam_limit)
    for mine, theirs, again in zip(out, wanted, made, strict=True):
        assert_equal(mine, theirs)
        assert_equal(again, theirs)
    if DEVICE.type == "cpu" and native.supports(*beams, max_nodes, beam_limit):
        for mine, theirs in zip(native.prefix_tree(*beams, max_nodes, beam_limit), wanted, strict=True):
            assert_equal(mine, theirs)
    return wanted


def check_mask(parents: torch.Tensor, num_nodes: torch.Tensor) -> None:
    from redrafter_vllm.ops.prefix_tree import kernel

    parents, num_nodes = parents.to(DEVICE), num_nodes.to(DEVICE)
    wanted = reference.ancestor_mask(parents, num_nodes)
    out = poisoned(*wanted.shape, dtype=torch.bool)
    kernel.ancestor_mask_into(out, parents, num_nodes)
    assert_equal(out, wanted)
    assert_equal(kernel.ancestor_mask(parents, num_nodes), wanted)
    if DEVICE.type == "cpu" and native.supports(parents, num_nodes):
        assert_equal(native.ancestor_mask(parents, num_nodes), wanted)


def random_beams(size: tuple[int, int, int], seed: int) -> Beams:
    """Random parents and scores [B, T, W], with ties, or any, which may rise along a path."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(2**40, size, generator=generator)
    parents = torch.randint(size[2], size, generator=generator)
    if seed % 2:
        scores = -torch.randint(6, size, generator=generator) / 4
    else:
        scores = -torch.rand(size, generator=generator) * 10 ** torch.randint(-6, 5, size, generator=generator)
    return tokens.to(DEVICE), parents.to(DEVICE), scores.to(DEVICE)


SIZES = [(1, 1, 1), (2, 5, 1), (2, 1, 6), (3, 4, 4), (2, 3, 7), (1, 5, 16), (1, 4, 33)]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_random_beams(size: tuple[int, int, int]) -> None:
    most = size[1] * size[2]
    for seed, max_nodes in enumerate(sorted({1, max(most // 2, 1), most, most + 3, 128})):
        tree = check(random_beams(size, seed), max_nodes)
        check_mask(tree[1], tree[5])


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_fewer_beams_count(size: tuple[int, int, int]) -> None:
    batch, length, width = size
    for limit in sorted({1, 2, width - 1, width, width + 3} - {0}):
        limits = torch.tensor([limit, 1, width][:batch], device=DEVICE)
        check(random_beams(size, limit), length * width, limits)


def test_one_beam_of_the_last_step_is_a_chain() -> None:
    tokens, parents, scores = random_beams((4, 3, 5), 1)
    tree = check((tokens, parents, scores), 15, torch.ones(4, dtype=torch.int64, device=DEVICE))
    assert tree[5].tolist() == [3] * 4
    assert tree[1][:, :3].tolist() == [[-1, 0, 1]] * 4
    assert torch.equal(tree[0][:, 2], tokens[:, 2, 0])


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")  # by numpy, which interprets the kernel
def test_infinite_and_undefined_scores() -> None:
    tokens = torch.arange(12, device=DEVICE).view(1, 3, 4)
    parents = torch.tensor([[[0, 0, 0, 0], [0, 1, 2, 3], [3, 2, 1, 0]]], device=DEVICE)
    scores = torch.tensor(
        [[[-1.0, -torch.inf, torch.nan, -3.3e38], [torch.nan, 0.0, -1.0, torch.inf], [-0.0, 0.0, torch.inf, -1.0]]],
        device=DEVICE,
    )
    for max_nodes in (1, 5, 12, 20):
        check((tokens, parents, scores), max_nodes)
        check((tokens, parents, scores), max_nodes, torch.tensor([2], device=DEVICE))


@pytest.mark.skipif(DEVICE.type != "cpu", reason="of the kernel for CPUs")
def test_another_default_type() -> None:
    """While a model in bfloat16 loads, tensors are made in bfloat16: with scores of half the size memory broke."""
    beams = random_beams((2, 4, 5), 0)
    wanted = reference.prefix_tree(*beams, 9)
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = native.prefix_tree(*beams, 9)
    finally:
        torch.set_default_dtype(torch.float32)
    for mine, theirs in zip(found, wanted, strict=True):
        assert_equal(mine, theirs)


def test_strides() -> None:
    tokens, parents, scores = random_beams((2, 4, 5), 0)
    strided = tokens.int().mT, (parents % 4).mT, scores.mT
    check(strided, 9)


def test_empty_batch() -> None:
    check(random_beams((0, 3, 2), 0), 4)
    check_mask(torch.zeros(0, 4, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))


@pytest.mark.parametrize("capacity", [1, 2, 7, 17, 128])
def test_masks_of_random_trees(capacity: int) -> None:
    rng = random.Random(capacity)
    rows = [[rng.randrange(max(-1, n - reach), n) for n in range(capacity)] for reach in (1, 3, capacity)]
    counts = [capacity, rng.randint(0, capacity), 0]
    check_mask(torch.tensor(rows), torch.tensor(counts))


def test_a_path_ends_at_padding() -> None:
    check_mask(torch.tensor([[-1, 3, 0, 2, -1]]), torch.tensor([3]))
