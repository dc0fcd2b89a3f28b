# SPDX-License-Identifier: Apache-2.0
import random

import pytest
import torch

from redrafter_vllm import Beams, DraftTree
from tests.oracles import paths, tree_nodes

SIZES = [(1, 1, 1), (1, 1, 5), (1, 6, 1), (3, 4, 4), (3, 7, 3), (2, 16, 5)]


def random_beams(batch: int, width: int, length: int, seed: int, vocab: int = 3) -> Beams:
    """Beams with many shared prefixes and whole duplicates, and log-probabilities with many exact ties.

    As in a real search, a token's log-probability depends on its prefix alone. All are multiples of 1/4, so sums are
    exact in any order; many are zero, so that parents and children tie.
    """
    rng = random.Random(seed)
    tokens, log_probs = [], []
    for _ in range(batch):
        known: dict[tuple[int, ...], float] = {}
        rows = [[rng.randrange(vocab) for _ in range(length)] for _ in range(width)]
        tokens.append(rows)
        log_probs.append(
            [
                [known.setdefault(tuple(row[: t + 1]), -rng.choice((0, 0, 1, 1, 2, 9)) / 4) for t in range(length)]
                for row in rows
            ]
        )
    shape = (batch, width, length)
    return Beams(torch.tensor(tokens).reshape(shape), torch.tensor(log_probs).reshape(shape))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("vocab", [1, 2, 5])
def test_against_prefix_sets_at_every_capacity(size: tuple[int, int, int], vocab: int) -> None:
    batch, width, length = size
    for seed in range(3):
        beams = random_beams(*size, seed=seed, vocab=vocab)
        for max_nodes in [*range(1, width * length + 1, 1 if width < 16 else 9), width * length + 3]:
            tree = DraftTree.from_beams(beams, max_nodes)
            for row in range(batch):
                expected = tree_nodes(beams, row)[:max_nodes]
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
    """Three beams 5-6-7, 5-6-8, 5-9-7: six prefixes, of which 9-7 is the least probable branch."""
    beams = Beams(
        torch.tensor([[[5, 6, 7], [5, 6, 8], [5, 9, 7]]]),
        torch.tensor([[[-0.25, -0.25, -0.5], [-0.25, -0.25, -0.75], [-0.25, -2.0, -0.25]]]),
    )
    tree = DraftTree.from_beams(beams, 7)
    assert tree.tokens.tolist() == [[5, 6, 7, 8, 9, 7, 0]]
    assert tree.parents.tolist() == [[-1, 0, 1, 1, 0, 4, -1]]
    assert tree.depths.tolist() == [[1, 2, 3, 3, 2, 3, 0]]
    assert tree.log_probs.tolist() == [[-0.25, -0.5, -1.0, -1.25, -2.25, -2.5, -torch.inf]]
    assert tree.num_nodes.tolist() == [6]
    assert tree.ancestor_mask()[0, 5].tolist() == [True, False, False, False, True, True, False]


def test_one_beam_is_a_chain() -> None:
    beams = random_beams(3, 1, 6, seed=2)
    tree = DraftTree.from_beams(beams, 6)
    assert torch.equal(tree.tokens, beams.tokens[:, 0])
    assert tree.parents.tolist() == [[-1, 0, 1, 2, 3, 4]] * 3
    assert torch.equal(tree.ancestor_mask(), torch.ones(3, 6, 6).tril().bool())


def test_equal_beams_collapse() -> None:
    beams = Beams(torch.full((1, 5, 4), 9), torch.full((1, 5, 4), -0.5))
    assert DraftTree.from_beams(beams, 20).num_nodes.tolist() == [4]


def test_impossible_and_undefined_scores_still_make_a_tree() -> None:
    """Log-probabilities of −inf, NaN, above zero, or unequal for one prefix must not break the order of nodes."""
    generator = torch.Generator().manual_seed(0)
    for trial in range(50):
        tokens = torch.randint(2, (2, 5, 4), generator=generator)
        log_probs = torch.randn(2, 5, 4, generator=generator)
        odd = torch.randint(4, (2, 5, 4), generator=generator)
        log_probs = log_probs.masked_fill(odd == 0, -torch.inf).masked_fill(
            odd == 1 if trial % 2 else odd > 4, torch.nan
        )
        beams = Beams(tokens, log_probs)
        tree = DraftTree.from_beams(beams, 20)
        for row in range(2):
            assert set(paths(tree, row)) == {path for path, _ in tree_nodes(beams, row)}
            assert len(paths(tree, row)) == int(tree.num_nodes[row])


def test_rounding_never_puts_a_child_before_its_parent() -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        log_probs = torch.where(torch.rand(4, 8, 8, generator=generator) < 0.5, -1e-9, -7.3)
        log_probs[:, 1:] = log_probs[:, :1]
        tree = DraftTree.from_beams(Beams(torch.randint(2, (4, 8, 8), generator=generator), log_probs), 64)
        for row in range(4):
            paths(tree, row)


def test_no_requests() -> None:
    tree = DraftTree.from_beams(Beams(torch.zeros(0, 3, 2, dtype=torch.long), torch.zeros(0, 3, 2)), 4)
    assert tree.tokens.shape == (0, 4)
    assert tree.ancestor_mask().shape == (0, 4, 4)


def test_truncated_counts_hide_nodes_from_the_mask() -> None:
    from redrafter_vllm.ops.prefix_tree import ancestor_mask

    mask = ancestor_mask(torch.tensor([[-1, 0, 1]]), torch.tensor([2]))
    assert mask.int().tolist() == [[[1, 0, 0], [1, 1, 0], [0, 0, 0]]]


def test_capacity_below_one() -> None:
    with pytest.raises(ValueError, match="max_nodes"):
        DraftTree.from_beams(random_beams(1, 2, 2, seed=0), 0)
