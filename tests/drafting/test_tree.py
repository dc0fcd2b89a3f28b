# SPDX-License-Identifier: Apache-2.0
import random

import pytest
import torch

from redrafter_vllm import Beams, DraftTree
from tests.oracles import Path, paths, tree_nodes

SIZES = [(1, 1, 1), (1, 1, 5), (1, 6, 1), (3, 4, 4), (3, 7, 3), (2, 16, 5)]


def random_beams(batch: int, width: int, length: int, seed: int) -> Beams:
    """Distinct beams of random parents, none more probable than its parent, with many exact ties.

    Log-probabilities are multiples of 1/4, so that sums are exact in any order; many steps add zero, so that parents
    and children tie.
    """
    rng = random.Random(seed)
    shape = (batch, length, width)
    tokens, parents, log_probs = (torch.zeros(shape, dtype=torch.long) for _ in range(3))
    for row in range(batch):
        above = [0] * width
        for step in range(length):
            pairs = [(parent, token) for parent in range(width if step else 1) for token in range(width)]
            children = [(above[p] - rng.choice((0, 0, 1, 1, 2, 9)), p, t) for p, t in rng.sample(pairs, width)]
            children.sort(reverse=True)
            for beam, (score, parent, token) in enumerate(children):
                tokens[row, step, beam], parents[row, step, beam], log_probs[row, step, beam] = token, parent, score
            above = [score for score, _, _ in children]
    return Beams(tokens, parents, log_probs / 4)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_against_sorted_beams_at_every_capacity(size: tuple[int, int, int]) -> None:
    batch, width, length = size
    for seed in range(5):
        beams = random_beams(*size, seed=seed)
        for max_nodes in [*range(1, width * length + 1, 1 if width < 16 else 9), width * length + 3]:
            tree = DraftTree.from_beams(beams, max_nodes)
            for row in range(batch):
                _assert_holds(tree, row, tree_nodes(beams, row)[:max_nodes])


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_fewer_beams_of_the_last_step(size: tuple[int, int, int]) -> None:
    batch, width, length = size
    for limit in range(1, width + 2):
        beams = random_beams(*size, seed=limit)
        tree = DraftTree.from_beams(beams, width * length, torch.full((batch,), limit))
        for row in range(batch):
            _assert_holds(tree, row, tree_nodes(beams, row, limit))


def _assert_holds(tree: DraftTree, row: int, expected: list[tuple[Path, float]]) -> None:
    count = int(tree.num_nodes[row])
    assert paths(tree, row) == [path for path, _ in expected]
    assert tree.log_probs[row, :count].tolist() == [log_prob for _, log_prob in expected]
    assert tree.depths[row, :count].tolist() == [len(path) for path, _ in expected]
    assert tree.tokens[row, count:].eq(0).all()
    assert tree.parents[row, count:].eq(-1).all()
    assert tree.depths[row, count:].eq(0).all()
    assert tree.log_probs[row, count:].eq(-torch.inf).all()


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_prefix_is_the_tree_of_that_size(size: tuple[int, int, int]) -> None:
    beams = random_beams(*size, seed=11)
    capacity = size[1] * size[2]
    whole = DraftTree.from_beams(beams, capacity)
    node = torch.arange(capacity)
    assert (whole.parents < node).all()
    assert (node >= whole.depths - 1).all()
    for n in range(1, capacity + 1):
        cut = DraftTree.from_beams(beams, n)
        for name in ("tokens", "parents", "depths", "log_probs"):
            assert torch.equal(getattr(cut, name), getattr(whole, name)[:, :n])
        assert torch.equal(cut.num_nodes, whole.num_nodes.clamp(max=n))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_ancestor_mask(size: tuple[int, int, int]) -> None:
    beams = random_beams(*size, seed=5)
    for max_nodes in {1, 2, 5, size[1] * size[2] + 2}:
        tree = DraftTree.from_beams(beams, max_nodes)
        mask = tree.ancestor_mask()
        assert mask.dtype == torch.bool
        assert mask.shape == (size[0], max_nodes, max_nodes)
        for row in range(size[0]):
            found = paths(tree, row)
            for i in range(max_nodes):
                for j in range(max_nodes):
                    real = i < len(found) and j < len(found)
                    assert bool(mask[row, i, j]) == (real and found[i][: len(found[j])] == found[j])


def test_hand_worked() -> None:
    """Beams 5 and 9; then 5-6 and 5-7, so that 9 was dropped; then 5-6-7 and 5-7-8. Each of the six is a node."""
    beams = Beams(
        torch.tensor([[[5, 9], [6, 7], [7, 8]]]),
        torch.tensor([[[0, 0], [0, 0], [0, 1]]]),
        torch.tensor([[[-0.25, -1.5], [-0.5, -1.0], [-1.25, -2.0]]]),
    )
    tree = DraftTree.from_beams(beams, 7)
    assert tree.tokens.tolist() == [[5, 6, 7, 7, 9, 8, 0]]
    assert tree.parents.tolist() == [[-1, 0, 0, 1, -1, 2, -1]]
    assert tree.depths.tolist() == [[1, 2, 2, 3, 1, 3, 0]]
    assert tree.log_probs.tolist() == [[-0.25, -0.5, -1.0, -1.25, -1.5, -2.0, -torch.inf]]
    assert tree.num_nodes.tolist() == [6]
    assert tree.ancestor_mask()[0, 5].tolist() == [True, False, True, False, False, True, False]
    assert beams.paths().tolist() == [[[5, 6, 7], [5, 7, 8]]]


def test_one_beam_is_a_chain() -> None:
    beams = random_beams(3, 1, 6, seed=2)
    tree = DraftTree.from_beams(beams, 6)
    assert torch.equal(tree.tokens, beams.tokens[..., 0])
    assert torch.equal(tree.tokens, beams.paths()[:, 0])
    assert tree.parents.tolist() == [[-1, 0, 1, 2, 3, 4]] * 3
    assert torch.equal(tree.ancestor_mask(), torch.ones(3, 6, 6).tril().bool())


def test_impossible_and_undefined_scores_still_make_a_tree() -> None:
    """Log-probabilities of NaN, above zero, or above the parent's must not break the order of nodes.

    A beam of −inf is none, and neither is what continues it.
    """
    generator = torch.Generator().manual_seed(0)
    for trial in range(50):
        beams = random_beams(2, 5, 4, seed=trial)
        odd = torch.randint(4, (2, 4, 5), generator=generator)
        log_probs = torch.randn(2, 4, 5, generator=generator).masked_fill(odd == 0, -torch.inf)
        log_probs = log_probs.masked_fill(odd == 1 if trial % 2 else odd > 4, torch.nan)
        tree = DraftTree.from_beams(Beams(beams.tokens, beams.parents, log_probs), 20)
        for row in range(2):
            possible = possible_paths(Beams(beams.tokens, beams.parents, log_probs), row)
            assert set(paths(tree, row)) == possible
            assert int(tree.num_nodes[row]) == len(possible)
            assert tree.log_probs[row, : len(possible)].isfinite().all()


def possible_paths(beams: Beams, row: int) -> set[Path]:
    """The paths that have no beam of −inf."""
    found: set[Path] = set()
    before: list[Path | None] = [()] * beams.tokens.shape[2]
    for tokens, parents, scores in zip(beams.tokens[row], beams.parents[row], beams.log_probs[row], strict=True):
        here: list[Path | None] = []
        for token, parent, score in zip(tokens.tolist(), parents.tolist(), scores.tolist(), strict=True):
            above = before[parent]
            here.append(None if above is None or score == -float("inf") else (*above, token))
        found.update(path for path in here if path is not None)
        before = here
    return found


def test_no_requests() -> None:
    tree = DraftTree.from_beams(random_beams(0, 3, 2, seed=0), 4)
    assert tree.tokens.shape == (0, 4)
    assert tree.ancestor_mask().shape == (0, 4, 4)


def test_truncated_counts_hide_nodes_from_the_mask() -> None:
    from redrafter_vllm.ops.prefix_tree import ancestor_mask

    mask = ancestor_mask(torch.tensor([[-1, 0, 1]]), torch.tensor([2]))
    assert mask.int().tolist() == [[[1, 0, 0], [1, 1, 0], [0, 0, 0]]]


def test_capacity_below_one() -> None:
    with pytest.raises(ValueError, match="max_nodes"):
        DraftTree.from_beams(random_beams(1, 2, 2, seed=0), 0)
