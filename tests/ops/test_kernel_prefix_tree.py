# SPDX-License-Identifier: Apache-2.0
"""The kernels of prefix trees and ancestor masks against their references, bit for bit."""

import random

import pytest
import torch

from redrafter_vllm.ops.prefix_tree import reference
from tests.ops.devices import DEVICE, assert_equal, poisoned, runs_kernels

pytestmark = runs_kernels


def check(
    tokens: torch.Tensor, log_probs: torch.Tensor, max_nodes: int, beam_limit: torch.Tensor | None = None
) -> tuple[torch.Tensor, ...]:
    from redrafter_vllm.ops.prefix_tree import kernel

    # The reference runs on the CPU: a GPU's scan adds in another order.
    wanted = reference.prefix_tree(
        tokens.cpu(), log_probs.cpu(), max_nodes, None if beam_limit is None else beam_limit.cpu()
    )
    out = kernel.TreeArrays(*(poisoned(*x.shape, dtype=x.dtype) for x in wanted))
    kernel.prefix_tree_into(out, tokens, log_probs, beam_limit)
    made = kernel.prefix_tree(tokens, log_probs, max_nodes, beam_limit)
    for mine, theirs, again in zip(out, wanted, made, strict=True):
        assert_equal(mine, theirs)
        assert_equal(again, theirs)
    return wanted


def check_mask(parents: torch.Tensor, num_nodes: torch.Tensor) -> None:
    from redrafter_vllm.ops.prefix_tree import kernel

    parents, num_nodes = parents.to(DEVICE), num_nodes.to(DEVICE)
    wanted = reference.ancestor_mask(parents, num_nodes)
    out = poisoned(*wanted.shape, dtype=torch.bool)
    kernel.ancestor_mask_into(out, parents, num_nodes)
    assert_equal(out, wanted)
    assert_equal(kernel.ancestor_mask(parents, num_nodes), wanted)


def random_beams(size: tuple[int, int, int], vocab: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Shared prefixes and duplicate beams; log-probabilities with ties, or any, which may differ between copies."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(vocab, size, generator=generator)
    if seed % 2:
        log_probs = -torch.randint(3, size, generator=generator) / 4
    else:
        log_probs = -torch.rand(size, generator=generator) * 10 ** torch.randint(-6, 5, size, generator=generator)
    return tokens.to(DEVICE), log_probs.to(DEVICE)


@pytest.mark.parametrize(
    "size", [(1, 1, 1), (2, 1, 5), (2, 6, 1), (3, 4, 4), (2, 7, 3), (1, 16, 5), (1, 33, 4)], ids=str
)
@pytest.mark.parametrize("vocab", [1, 2, 30])
def test_random_beams(size: tuple[int, int, int], vocab: int) -> None:
    most = size[1] * size[2]
    for seed, max_nodes in enumerate(sorted({1, max(most // 2, 1), most, most + 3, 128})):
        tree = check(*random_beams(size, vocab, seed), max_nodes)
        check_mask(tree[1], tree[4])


@pytest.mark.parametrize("vocab", [2, 30])
def test_fewer_beams_count(vocab: int) -> None:
    tokens, log_probs = random_beams((4, 5, 3), vocab, 1)
    tree = check(tokens, log_probs, 15, torch.tensor([1, 2, 5, 9], device=DEVICE))
    for request, limit in enumerate([1, 2, 5, 5]):
        alone = check(tokens[request : request + 1, :limit], log_probs[request : request + 1, :limit], 15)
        for mine, theirs in zip(tree, alone, strict=True):
            assert_equal(mine[request : request + 1], theirs)


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")  # by numpy, which interprets the kernel
def test_infinite_and_undefined_log_probs() -> None:
    tokens = torch.tensor([[[1, 2, 3], [1, 2, 4], [5, 2, 3], [6, 6, 6]]], device=DEVICE)
    log_probs = torch.tensor(
        [[[-1.0, -torch.inf, -1.0], [-1.0, torch.nan, -1.0], [-3e38, -3e38, 0.0], [-0.0, 0.0, torch.inf]]],
        device=DEVICE,
    )
    for max_nodes in (1, 5, 12, 20):
        check(tokens, log_probs, max_nodes)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_types_and_strides(dtype: torch.dtype) -> None:
    tokens, log_probs = random_beams((2, 5, 4), 2, 0)
    check(tokens.int().permute(0, 2, 1), log_probs.to(dtype).permute(0, 2, 1), 9)


def test_empty_batch() -> None:
    check(*random_beams((0, 3, 2), 2, 0), 4)
    check_mask(torch.zeros(0, 4, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))


@pytest.mark.parametrize("capacity", [1, 2, 7, 17, 128])
def test_masks_of_random_trees(capacity: int) -> None:
    rng = random.Random(capacity)
    rows = [[rng.randrange(max(-1, n - reach), n) for n in range(capacity)] for reach in (1, 3, capacity)]
    counts = [capacity, rng.randint(0, capacity), 0]
    check_mask(torch.tensor(rows), torch.tensor(counts))


def test_a_path_ends_at_padding() -> None:
    check_mask(torch.tensor([[-1, 3, 0, 2, -1]]), torch.tensor([3]))
