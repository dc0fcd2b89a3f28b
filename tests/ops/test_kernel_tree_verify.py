# SPDX-License-Identifier: Apache-2.0
"""The walk's kernel against its reference, which has its own tests against hand-worked trees."""

import random

import pytest
import torch

from redrafter_vllm.ops.tree_verify import reference
from redrafter_vllm.ops.tree_verify.reference import Walk
from tests.ops.devices import DEVICE, assert_equal, poisoned, runs_kernels

pytestmark = runs_kernels


def random_trees(batch: int, num_nodes: int, vocab: int, seed: int) -> tuple[torch.Tensor, ...]:
    """Random tokens (equal siblings included), parents that mostly make long paths, some invalid nodes."""
    rng = random.Random(seed)
    tokens, parents, valid = [], [], []
    for _ in range(batch):
        count = rng.choice([0, num_nodes, rng.randint(0, num_nodes)])
        tokens.append([rng.randrange(vocab) if n < count else 0 for n in range(num_nodes)])
        parents.append([rng.randrange(max(-1, n - 3), n) if n < count else -1 for n in range(num_nodes)])
        valid.append([n < count and rng.random() < 0.95 for n in range(num_nodes)])
    shape = (batch, num_nodes)
    return tuple(
        torch.tensor(part, dtype=dtype, device=DEVICE).reshape(shape)
        for part, dtype in ((tokens, torch.int64), (parents, torch.int64), (valid, torch.bool))
    )


def check(sampled: torch.Tensor, trees: tuple[torch.Tensor, ...], max_depth: int) -> None:
    """Passes `sampled` [B, 1 + N] as rows, with the requests in reverse order."""
    from redrafter_vllm.ops.tree_verify import kernel

    num_reqs, num_rows = sampled.shape
    first_row = (num_reqs - 1 - torch.arange(num_reqs, device=DEVICE)) * num_rows
    sampled = sampled.flip(0).flatten()
    wanted = reference.tree_verify(sampled, first_row, *trees, max_depth)
    out = Walk(*(poisoned(*x.shape, dtype=x.dtype) for x in wanted))
    kernel.tree_verify_into(out, sampled, first_row, *trees)
    again = kernel.tree_verify(sampled, first_row, *trees, max_depth)
    for mine, theirs, other in zip(out, wanted, again, strict=True):
        assert_equal(mine, theirs)
        assert_equal(other, theirs)


@pytest.mark.parametrize("num_nodes", [1, 2, 3, 7, 16, 33, 127, 128])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_random_trees(num_nodes: int, dtype: torch.dtype) -> None:
    for seed, vocab in enumerate([1, 2, 40]):
        trees = random_trees(3, num_nodes, vocab, seed)
        generator = torch.Generator().manual_seed(seed)
        sampled = torch.randint(vocab, (3, num_nodes + 1), dtype=dtype, generator=generator).to(DEVICE)
        check(sampled, trees, max_depth=[num_nodes, 5, num_nodes + 2][seed])


@pytest.mark.parametrize("num_nodes", [1, 5, 64])
def test_chains_accepted_fully_and_not_at_all(num_nodes: int) -> None:
    chain = torch.arange(num_nodes, device=DEVICE).repeat(2, 1)
    sampled = torch.arange(num_nodes + 1, device=DEVICE).repeat(2, 1)
    sampled[1, 0] = num_nodes + 1
    check(sampled, (chain, chain - 1, torch.ones_like(chain, dtype=torch.bool)), num_nodes)


def test_large_token_ids_are_compared_in_full() -> None:
    tokens = torch.tensor([[2**33 + 5, 5, 2**33 + 6, 6]], device=DEVICE)
    parents = torch.tensor([[-1, -1, 1, 1]], device=DEVICE)
    sampled = torch.tensor([[5, 0, 6, 0, 2**40 + 7]], device=DEVICE)
    check(sampled, (tokens, parents, torch.ones_like(tokens, dtype=torch.bool)), 4)


def test_no_requests_no_nodes_no_depth() -> None:
    none = torch.zeros(0, 3, dtype=torch.int64, device=DEVICE)
    check(torch.zeros(0, 4, dtype=torch.int64, device=DEVICE), (none, none, none.bool()), 3)
    bare = torch.zeros(2, 0, dtype=torch.int64, device=DEVICE)
    check(torch.tensor([[7], [8]], device=DEVICE), (bare, bare, bare.bool()), 3)
    trees = random_trees(2, 4, 1, 0)
    check(torch.zeros(2, 5, dtype=torch.int64, device=DEVICE), trees, 0)


def test_rows_of_wider_buffers() -> None:
    trees = tuple(torch.cat((x, x), dim=1)[:, :6] for x in random_trees(3, 6, 2, 5))
    sampled = torch.randint(2, (3, 7), device=DEVICE)
    check(sampled, trees, 6)
