# SPDX-License-Identifier: Apache-2.0
"""Copies of the text beside a search's beams: by hand, and both kernels against the reference."""

import math
import random

import pytest
import torch

from redrafter_vllm.drafting.beam_search import Beams
from redrafter_vllm.drafting.tree import DraftTree
from redrafter_vllm.ops.graft_copies import Texts, native, reference
from tests.ops.devices import DEVICE, runs_kernels
from tests.ops.native import needs_compiler

A, B, C, D, E = range(10, 15)


def texts(*rows: list[int], length: int = 100) -> Texts:
    tokens = torch.full((len(rows), length), 99, dtype=torch.int32)  # beyond a text stands what was there before
    for row, text in enumerate(rows):
        tokens[row, : len(text)] = torch.tensor(text)
    return Texts(tokens, torch.tensor([len(text) for text in rows], dtype=torch.int32))


def copied(text: list[int], count: int = 4) -> tuple[list[int], int]:
    tokens, matched = reference.copied_tokens(texts(text), torch.tensor([0]), count)
    return tokens[0].tolist(), int(matched)


def test_the_most_equal_tokens_win_and_of_those_the_latest() -> None:
    # "B C" occurs twice, the later time behind another token; "A B C" once, and then came D.
    assert copied([A, B, C, D, E, B, C, E, E, A, B, C]) == ([D, E, B, C], 3)
    # Both times two tokens are equal: the later one counts.
    assert copied([A, B, C, D, D, B, C, E, D, E, B, C]) == ([E, D, E, B], 2)


def test_a_copy_that_runs_into_the_end_repeats_itself() -> None:
    assert copied([E, A, B, A, B], 5) == ([A, B, A, B, A], 2)
    assert copied([A] * 5, 3) == ([A, A, A], 4)


def test_no_more_than_32_equal_tokens_are_told_apart() -> None:
    many = list(range(20, 60))
    assert copied([*many, D, *many]) == ([D, 20, 21, 22], 32)


@pytest.mark.parametrize("text", [[], [A], [A, B], [A, B, C, D], [A, B, C, A]])
def test_no_copy_without_two_equal_tokens(text: list[int]) -> None:
    tokens, matched = copied(text)
    assert tokens == [0] * 4 and matched < reference.SHORTEST


def test_the_text_of_another_request_is_not_looked_at() -> None:
    tokens, matched = reference.copied_tokens(texts([A, B, C, A, B], [D, E, D, E]), torch.tensor([1, 0, 2, 7]), 2)
    assert tokens.tolist() == [[D, E], [C, A], [0, 0], [0, 0]]
    assert matched[:2].tolist() == [2, 2] and (matched[2:] < 2).all()


def beams(*steps: list[tuple[int, int, float]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """For each step its beams: token, parent, probability."""
    tokens = torch.tensor([[[beam[0] for beam in step] for step in steps]])
    parents = torch.tensor([[[beam[1] for beam in step] for step in steps]])
    log_probs = torch.tensor([[[beam[2] for beam in step] for step in steps]]).log()
    return tokens, parents, log_probs


def tree(found: tuple[torch.Tensor, ...], max_nodes: int) -> list[tuple[int, int, float]]:
    """Token, parent and probability of each node."""
    made = DraftTree.from_beams(Beams(*found), max_nodes)
    values = made.tokens[0].tolist(), made.parents[0].tolist(), made.log_probs[0].exp().tolist()
    return [(token, parent, round(p, 4)) for token, parent, p in zip(*values, strict=True)]


# Three equal tokens, A B C, and then D E B: the copy is right with probability 2/3, 2/4, 2/5.
TEXT = [A, B, C, D, E, B, A, B, C]


def grafted(given: tuple[torch.Tensor, ...], text: list[int], length: int) -> tuple[torch.Tensor, ...]:
    return reference.graft_copies(*given, texts(text), torch.tensor([0]), length)


def test_a_copy_that_no_beam_has_is_a_branch() -> None:
    found = grafted(beams([(A, 0, 0.5), (B, 0, 0.25)], [(A, 0, 0.3), (C, 1, 0.2)]), TEXT, 2)
    assert tree(found, 6) == [(D, -1, 0.6667), (A, -1, 0.5), (E, 0, 0.5), (A, 1, 0.3), (B, -1, 0.25), (C, 4, 0.2)]


def test_a_copy_may_be_longer_than_the_beams() -> None:
    found = grafted(beams([(A, 0, 0.5), (B, 0, 0.3)]), TEXT, 3)
    assert found[2][0, 1:, :2].tolist() == [[-math.inf] * 2] * 2
    assert tree(found, 9)[:5] == [(D, -1, 0.6667), (A, -1, 0.5), (E, 0, 0.5), (B, 2, 0.4), (B, -1, 0.3)]
    assert DraftTree.from_beams(Beams(*found), 9).num_nodes.tolist() == [5]


def test_a_copy_without_any_beam() -> None:
    empty = torch.zeros(1, 0, 4, dtype=torch.int64)
    found = grafted((empty, empty, empty.float()), TEXT, 3)
    assert tree(found, 3) == [(D, -1, 0.6667), (E, 0, 0.5), (B, 1, 0.4)]


def test_the_copy_stands_for_a_beam_that_says_the_same_and_lifts_what_continues_it() -> None:
    found = grafted(
        beams(
            [(A, 0, 0.5), (D, 0, 0.25)],
            [(B, 0, 0.4), (C, 1, 0.1)],
            [(B, 0, 0.3), (A, 1, 0.05)],
        ),
        TEXT,
        3,
    )
    assert found[2][0, 0, 1] == -math.inf
    # D rises from 0.25 to 2/3, and C and A behind it by the same factor, 8/3; E is no beam and becomes a branch of D.
    assert tree(found, 8) == [
        (D, -1, 0.6667),
        (A, -1, 0.5),
        (E, 0, 0.5),
        (B, 1, 0.4),
        (B, 2, 0.4),
        (B, 3, 0.3),
        (C, 0, 0.2667),
        (A, 6, 0.1333),
    ]


def test_a_surer_beam_keeps_its_probability() -> None:
    found = grafted(beams([(D, 0, 0.9), (A, 0, 0.05)]), TEXT, 1)
    assert tree(found, 2) == [(D, -1, 0.9), (A, -1, 0.05)]


def test_without_a_copy_beams_stay_as_they_are() -> None:
    given = beams([(A, 0, 0.5), (B, 0, 0.25)], [(A, 0, 0.3), (C, 1, 0.2)])
    found = grafted(given, [A, B, C], 2)
    for mine, before in zip(found, given, strict=True):
        assert torch.equal(mine[..., :2], before)
    assert found[2][..., 2].tolist() == [[-math.inf, -math.inf]]


def test_limited_trees_have_no_copies() -> None:
    given = beams([(A, 0, 0.5), (D, 0, 0.25)], [(A, 0, 0.3), (E, 1, 0.2)])
    for limit, tokens in ((1, [A, A]), (2, [A, A, D, E])):
        limits = torch.tensor([limit])
        found = reference.graft_copies(*given, texts(TEXT), torch.tensor([0]), 4, limits)
        made = DraftTree.from_beams(Beams(*found), 6, limits)
        assert made.tokens[0, : int(made.num_nodes)].tolist() == tokens


SIZES = [(2, 0, 3), (1, 1, 2), (3, 4, 4), (2, 6, 5), (4, 3, 16), (9, 2, 3)]
LENGTHS = [1, 3, 60, 1500]


def arguments(
    size: tuple[int, int, int], length: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Texts, torch.Tensor, int, torch.Tensor]:
    """Few different tokens, so that beams, copies and texts meet often."""
    rng = random.Random(length + size[0])
    generator = torch.Generator().manual_seed(length + size[2])
    batch, steps, width = size
    rows = [[rng.randrange(3) for _ in range(rng.randrange(length + 1))] for _ in range(batch)]
    # Beams of a step are distinct: no two have both a token and a parent in common, or in the first step a token.
    pairs = [torch.randperm(4 * width, generator=generator)[:width] for _ in range(batch * steps)]
    pair = torch.cat([torch.zeros(0, dtype=torch.int64), *pairs]).view(size)
    tokens, parents = pair % 4, pair // 4
    tokens[:, :1] = pair[:, :1]
    log_probs = torch.randn(size, generator=generator) - 2
    log_probs[0, :1, 0] = -math.inf
    row = torch.tensor([rng.randrange(batch + 2) for _ in range(batch)])
    limits = torch.tensor([rng.choice((1, width, width + 1, 65)) for _ in range(batch)])
    return tokens, parents, log_probs, texts(*rows, length=length), row, max(1, steps + rng.randrange(5)), limits


def check(found: tuple[torch.Tensor, ...], wanted: tuple[torch.Tensor, ...]) -> None:
    assert torch.equal(found[0], wanted[0]) and torch.equal(found[1], wanted[1])
    torch.testing.assert_close(found[2], wanted[2], equal_nan=True)


@runs_kernels
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("length", LENGTHS)
def test_the_kernel(size: tuple[int, int, int], length: int) -> None:
    from redrafter_vllm.ops.graft_copies import kernel

    *beams, own, row, count, limits = arguments(size, length)
    given = *(x.to(DEVICE) for x in beams), Texts(*(x.to(DEVICE) for x in own)), row.to(DEVICE), count
    check(kernel.graft_copies(*given), reference.graft_copies(*given))
    check(kernel.graft_copies(*given, limits.to(DEVICE)), reference.graft_copies(*given, limits.to(DEVICE)))


@needs_compiler
@pytest.mark.parametrize("size", [(0, 3, 4), *SIZES], ids=str)
@pytest.mark.parametrize("length", LENGTHS)
def test_the_native_kernel(size: tuple[int, int, int], length: int) -> None:
    if size[0] == 0:
        given = *(torch.zeros(size, dtype=dtype) for dtype in (torch.int64, torch.int64, torch.float32)), texts([A])
        assert native.graft_copies(*given, torch.zeros(0, dtype=torch.int64), 6)[0].shape == (0, 6, 5)
        return
    *given, limits = arguments(size, length)
    for each in (given, [*given, limits]):
        assert native.supports(*each)
        check(native.graft_copies(*each), reference.graft_copies(*each))
    wide = Texts(given[3].tokens.long(), given[3].lengths)
    assert not native.supports(*given[:3], wide, *given[4:])
