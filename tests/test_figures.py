# SPDX-License-Identifier: Apache-2.0
"""The figures of docs/how_it_works.md are what the script draws, and their round is what the pair computes."""

from dataclasses import asdict
from xml.etree import ElementTree

import pytest

from tools import draw_figures
from tools.draw_figures import FIGURES, FOLDER, Round, compute, read

# By hand: a root with two children, the second of which has one. The target says b, d, x.
SMALL = Round(
    prompt="",
    root="r",
    tokens=["a", "b", "d"],
    parents=[-1, -1, 1],
    depths=[1, 1, 2],
    probabilities=[0.6, 0.4, 0.2],
    ancestors=[[1, 0, 0], [0, 1, 0], [0, 1, 1]],
    choices=["b", "q", "d", "x"],
    path=[1, 2],
    emitted=["b", "d", "x"],
)
SVG = "{http://www.w3.org/2000/svg}"


def classes(svg: str, element: str) -> list[str | None]:
    return [found.get("class") for found in ElementTree.fromstring(svg).iter(f"{SVG}{element}")]


@pytest.mark.parametrize("name", FIGURES)
def test_committed_figures_are_current(name: str) -> None:
    drawn = FIGURES[name](read())
    assert (FOLDER / name).read_text(encoding="utf-8") == drawn, "run python -m tools.draw_figures"


@pytest.mark.slow
def test_the_committed_round_is_that_of_the_pair() -> None:
    committed, computed = asdict(read()), asdict(compute())
    # Rounding differs between processors.
    assert computed.pop("probabilities") == pytest.approx(committed.pop("probabilities"), abs=1e-3)
    assert computed == committed


def test_the_committed_round_is_worth_showing() -> None:
    """A branching tree, of which the target accepts something else than the drafter's first guess."""
    drawn = read()
    assert len(drawn.path) >= 2 and drawn.path[0] != 0
    assert len(set(drawn.parents)) < len(drawn.parents)


def test_a_tree_by_hand() -> None:
    svg = draw_figures.tree_figure(SMALL)
    assert classes(svg, "rect") == ["paper", "root", "node", "accepted", "accepted"]
    assert classes(svg, "path") == ["edge", "path", "path"]


def test_a_mask_by_hand() -> None:
    cells = classes(draw_figures.mask_figure(SMALL), "rect")[1:]
    short = {"context": "c", "seen": "s", "hidden": "."}
    rows = ["".join(short[str(cell)] for cell in cells[start : start + 5]) for start in range(0, 20, 5)]
    assert rows == ["cs...", "css..", "cs.s.", "cs.ss"]


def test_a_walk_by_hand() -> None:
    svg = draw_figures.walk_figure(SMALL)
    # The token and the target's token of each row.
    assert classes(svg, "rect")[1:] == [*("root", "accepted"), *("node", "node"), *("accepted",) * 4]
    said = [found.text for found in ElementTree.fromstring(svg).iter(f"{SVG}text")]
    assert "emitted: b d x   (3 tokens of one pass)" in said
    assert said.count("accepted") == 1 and said.count("accepted; no child is that token") == 1
    # Row 3, node 2, is at depth 2.
    assert said[said.index("3") : said.index("3") + 4] == ["3", "d", "computed + 3", "computed + 2"]
