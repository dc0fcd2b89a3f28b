# SPDX-License-Identifier: Apache-2.0
"""The walk against hand-worked trees and a recursive oracle."""

import random

import pytest
import torch

from redrafter_vllm.ops import tree_verify as op
from redrafter_vllm.ops.tree_verify import Walk, native, reference
from tests.ops.native import needs_compiler


@pytest.fixture(autouse=True, params=[reference, pytest.param(native, marks=needs_compiler)], ids=["torch", "native"])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(op, "tree_verify", request.param.tree_verify)


def batch(*rows: list[int]) -> torch.Tensor:
    return torch.tensor(rows)


def tree_verify(
    sampled: torch.Tensor, tokens: torch.Tensor, parents: torch.Tensor, valid: torch.Tensor, max_depth: int
) -> Walk:
    """The walk, with a row for every node and consecutive requests: `sampled` [B, 1 + N]."""
    first_row = torch.arange(sampled.shape[0]) * sampled.shape[1]
    return op.tree_verify(sampled.flatten(), first_row, tokens, parents, valid, max_depth)


def test_hand_worked_tree() -> None:
    # root ─ 5(0) ─ 7(2) ─ 9(4)
    #      └ 6(1) ─ 7(3)
    tokens, parents = batch([5, 6, 7, 7, 9]), batch([-1, -1, 0, 1, 2])
    valid = torch.ones(1, 5, dtype=torch.bool)
    # After the root the target says 6, after node 1 it says 7, after node 3 it says 8, which no child has.
    walk = tree_verify(batch([6, 0, 7, 0, 8, 0]), tokens, parents, valid, 3)
    assert walk.emitted.tolist() == [[6, 7, 8, 0, 0, 0]]
    assert walk.path.tolist() == [[1, 3, -1]]
    assert walk.num_emitted.tolist() == [3]
    assert walk.leaf.tolist() == [4]


def test_everything_accepted_and_everything_rejected() -> None:
    tokens, parents = batch([4, 5, 6], [4, 5, 6]), batch([-1, 0, 1], [-1, 0, 1])
    walk = tree_verify(batch([4, 5, 6, 7], [9, 5, 6, 7]), tokens, parents, torch.ones(2, 3, dtype=torch.bool), 3)
    assert walk.emitted.tolist() == [[4, 5, 6, 7], [9, 0, 0, 0]]
    assert walk.num_emitted.tolist() == [4, 1]
    assert walk.path.tolist() == [[0, 1, 2], [-1, -1, -1]]
    assert walk.leaf.tolist() == [3, 0]


def test_invalid_nodes_are_never_entered() -> None:
    tokens, parents = batch([4, 5]), batch([-1, 0])
    walk = tree_verify(batch([4, 5, 6]), tokens, parents, batch([1, 0]).bool(), 2)
    assert walk.emitted.tolist() == [[4, 5, 0]]
    # Padding has parent −1 and token 0: the token 0 from the target must not match it.
    walk = tree_verify(batch([0, 1, 1]), batch([0, 0]), batch([-1, -1]), batch([0, 0]).bool(), 2)
    assert walk.num_emitted.tolist() == [1]


def test_depth_limit_and_empty_batch() -> None:
    walk = tree_verify(batch([4, 5, 6]), batch([4, 5]), batch([-1, 0]), batch([1, 1]).bool(), 1)
    assert walk.num_emitted.tolist() == [2] and walk.path.tolist() == [[0]]
    empty = torch.zeros(0, 3, dtype=torch.long)
    walk = tree_verify(torch.zeros(0, 4, dtype=torch.long), empty, empty, empty.bool(), 3)
    assert walk.emitted.shape == (0, 4) and walk.path.shape == (0, 3) and walk.num_emitted.shape == (0,)


def recursive_walk(sampled: list[int], tokens: list[int], parents: list[int]) -> tuple[list[int], list[int]]:
    def visit(node: int) -> tuple[list[int], list[int]]:
        token = sampled[node + 1]
        for child, (own, parent) in enumerate(zip(tokens, parents, strict=True)):
            if parent == node and own == token:
                emitted, path = visit(child)
                return [token, *emitted], [child, *path]
        return [token], []

    return visit(-1)


@pytest.mark.parametrize("seed", range(20))
def test_against_a_recursive_walk(seed: int) -> None:
    rng = random.Random(seed)
    num_nodes, vocab = rng.choice([1, 2, 7, 16, 33]), rng.choice([2, 3, 40])
    rows = []
    for _ in range(5):
        tokens: list[int] = []
        parents: list[int] = []
        for node in range(num_nodes):
            parent = rng.randrange(-1, node)
            taken = {t for t, p in zip(tokens, parents, strict=True) if p == parent}
            free = [t for t in range(vocab) if t not in taken]
            parents.append(parent if free else node - 1)
            tokens.append(rng.choice(free) if free else rng.randrange(vocab))
        rows.append(([rng.randrange(vocab) for _ in range(num_nodes + 1)], tokens, parents))
    sampled, tokens_BN, parents_BN = (torch.tensor(part) for part in zip(*rows, strict=True))
    walk = tree_verify(sampled, tokens_BN, parents_BN, torch.ones_like(tokens_BN, dtype=torch.bool), num_nodes)
    for index, row in enumerate(rows):
        emitted, path = recursive_walk(*row)
        count = int(walk.num_emitted[index])
        assert walk.emitted[index, :count].tolist() == emitted
        assert not walk.emitted[index, count:].any()
        assert walk.path[index, : count - 1].tolist() == path
        assert (walk.path[index, count - 1 :] == -1).all()
        assert walk.leaf[index] == (path[-1] + 1 if path else 0)


def test_rows_of_requests_that_have_fewer_rows_than_nodes() -> None:
    """The second request's tree was cut to one node, and its walk ends there."""
    tokens, parents = batch([4, 5, 6], [4, 5, 6]), batch([-1, 0, 1], [-1, 0, 1])
    valid = batch([1, 1, 1], [1, 0, 0]).bool()
    sampled = torch.tensor([4, 5, 6, 7, 4, 5])
    walk = op.tree_verify(sampled, torch.tensor([0, 4]), tokens, parents, valid, 3)
    assert walk.emitted.tolist() == [[4, 5, 6, 7], [4, 5, 0, 0]]
    assert walk.leaf.tolist() == [3, 1]
