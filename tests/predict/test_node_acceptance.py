# SPDX-License-Identifier: Apache-2.0
"""Acceptance by beams and depth, and what every node of a tree has of it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from redrafter_vllm.config import DraftingConfig
from redrafter_vllm.predict.acceptance import Acceptance, AcceptanceError, find_acceptance, known_acceptance
from tests.paths import ROOT

DRAFTER = ROOT / "tests" / "assets" / "smollm2-135m-instruct" / "redrafter"
KNOWN = Acceptance({1: (0.5, 0.3), 4: (0.7, 0.5)}, "test")


def test_a_chain_has_the_shares_of_one_beam() -> None:
    assert KNOWN.nodes(DraftingConfig(1, 2)).tolist() == [0.5, 0.3]


def test_nodes_of_a_tree() -> None:
    # Two beams are half-way between one and four: 0.6 and 0.4, so the second node of each depth adds 0.1. The third
    # and the fourth beam bring what is left of 0.1, the third more: log2(3 / 2) of it.
    assert KNOWN.at(2) == pytest.approx([0.6, 0.4])
    third = 0.1 * np.log2(3 / 2)
    assert KNOWN.nodes(DraftingConfig(4, 2)) == pytest.approx(
        [0.5, 0.3, 0.1, 0.1, third, third, 0.1 - third, 0.1 - third]
    )
    # A smaller tree keeps the best of them.
    assert KNOWN.nodes(DraftingConfig(4, 2, 3)) == pytest.approx([0.5, 0.3, 0.1])


@pytest.mark.parametrize("width", [1, 2, 3, 4, 7, 64])
def test_the_nodes_of_a_whole_tree_bring_what_the_beams_reach(width: int) -> None:
    for known in known_acceptance().values():
        tree = DraftingConfig(width, known.length, min(128, width * known.length))
        if width >= known.fewest_beams and tree.num_speculative_tokens == tree.max_nodes:
            assert known.nodes(tree).sum() == pytest.approx(known.at(width).sum())


def test_shorter_beams_do_not_reach_the_last_depths() -> None:
    assert KNOWN.nodes(DraftingConfig(1, 1)).tolist() == [0.5]


def test_longer_beams_than_known() -> None:
    with pytest.raises(AcceptanceError, match=r"beams of 3: acceptance is known to depth 2 \(test\)"):
        KNOWN.nodes(DraftingConfig(1, 3))


def test_fewer_beams_than_known() -> None:
    four = Acceptance({4: (0.8, 0.4)}, "test")
    with pytest.raises(AcceptanceError, match=r"1x2:2: acceptance is known from 4 beams on \(test\); .* --tree 4x2"):
        four.nodes(DraftingConfig(1, 2))
    # How four beams divide their share is not known, so that none of them is better than another.
    assert four.nodes(DraftingConfig(4, 2)) == pytest.approx([0.2] * 4 + [0.1] * 4)
    assert four.nodes(DraftingConfig(4, 2, 3)) == pytest.approx([0.2] * 3)
    assert four.nodes(DraftingConfig(8, 2, 16)).sum() == pytest.approx(1.2)


def test_more_beams_than_known_add_nothing() -> None:
    assert KNOWN.nodes(DraftingConfig(8, 2, 16)).sum() == pytest.approx(0.7 + 0.5)


def test_the_papers_tokens_per_step() -> None:
    paper = find_acceptance("paper")
    for beams, tokens in {1: 2.35, 2: 2.5, 4: 2.73, 16: 3.09, 64: 3.58}.items():
        depths = paper.at(beams)
        assert 1 + depths.sum() == pytest.approx(tokens)
        assert depths[1:] / depths[:-1] == pytest.approx([depths[0]] * 3)  # the same probability at every depth


def test_the_committed_drafter() -> None:
    """`acceptance.json` has the rounded figures of the drafter's own report."""
    measured, own = find_acceptance(str(DRAFTER)), find_acceptance("smollm2")
    for beams in (1, 4):
        assert own.at(beams) == pytest.approx(measured.at(beams), abs=6e-4)


def test_a_file_of_a_users_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"by_depth": {"10": [0.8, 0.6], "2": [0.6, 0.4]}, "source": "measured by me"}))
    found = find_acceptance(str(file))
    assert dict(found.by_depth) == {2: (0.6, 0.4), 10: (0.8, 0.6)}
    assert found.source == "measured by me"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "cannot be read as JSON"),
        ([], "holds no JSON object"),
        ({}, "must be an object with"),
        ({"by_depth": {"one": [0.5]}}, "must be an object with"),
        ({"by_depth": {}}, "needs shares for at least one number of beams"),
        ({"by_depth": {"1": []}}, "needs shares for at least one number of beams"),
        ({"by_depth": {"1": [0.5], "2": [0.5, 0.4]}}, "as many depths for each"),
        ({"by_depth": {"0": [0.5]}}, "needs shares for at least one number of beams"),
        ({"by_depth": {"1": [1.5]}}, "between 0 and 1"),
        ({"by_depth": {"1": [0.4, 0.5]}}, "not rise with depth"),
        ({"by_depth": {"1": [0.5], "2": [0.4]}}, "more of them cannot accept less"),
        ({"tokens_per_step": {"1": 5.5}, "length": 4}, "beams of 4 draft tokens give 1 to 5 tokens a step"),
        ({"tokens_per_step": {"1": 2}}, "must be an object with"),
    ],
)
def test_mistakes_in_a_file(tmp_path: Path, content: Any, message: str) -> None:
    file = tmp_path / "mine.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(AcceptanceError, match=message) as refused:
        find_acceptance(str(file))
    assert str(file) in str(refused.value)


def test_a_drafter_that_was_not_measured(tmp_path: Path) -> None:
    with pytest.raises(AcceptanceError, match=r"training\.json has no acceptance measured on held-out prompts"):
        find_acceptance(str(tmp_path))


def test_an_unknown_name() -> None:
    with pytest.raises(AcceptanceError, match=r"did you mean 'paper'.*give paper, smollm2"):
        find_acceptance("papper")
