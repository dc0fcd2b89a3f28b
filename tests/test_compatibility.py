# SPDX-License-Identifier: Apache-2.0
"""The pages whose tables end with the test that shows a row: no row without a test that exists."""

import ast
import re

import pytest
from packaging.version import Version

from redrafter_vllm.integration.versions import BEYOND, LOWEST
from tests.paths import ROOT

PAGES = ("reference/compatibility.md", "reference/reported_cases.md", "exactness.md", "cluster.md")


def text_of(page: str) -> str:
    return (ROOT / "docs" / page).read_text(encoding="utf-8")


def cells(text: str) -> list[list[str]]:
    """The cells of every row of the tables in a text."""
    bodies = re.findall(r"^\|(?:---\|)+\n((?:\|.*\n)+)", text, re.MULTILINE)
    lines = [line for body in bodies for line in body.splitlines()]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def rows(page: str) -> list[tuple[str, str]]:
    """Feature, case or step and the tests named for it, of every table of a page."""
    return [(row[0], row[-1]) for row in cells(text_of(page))]


@pytest.mark.parametrize(("page", "min_rows"), zip(PAGES, (40, 25, 12, 3), strict=True))
def test_page_has_rows(page: str, min_rows: int) -> None:
    assert len(rows(page)) > min_rows


def test_every_version_has_a_column() -> None:
    """Of each supported version, in each table of features; the last table is about versions themselves."""
    features, _, _ = text_of(PAGES[0]).partition("## Versions of vLLM")
    lowest, beyond = (Version(version).minor for version in (LOWEST, BEYOND))
    supported = [f"0.{minor}" for minor in range(lowest, beyond)]
    heads = [line for line in features.splitlines() if line.startswith("| feature |")]
    assert len(heads) > 8
    assert set(heads) == {f"| feature | how | {' | '.join(supported)} | shown by |"}
    assert not [row for row in cells(features) if len(row) != 3 + len(supported) or "" in row or "?" in row[2:-1]]


@pytest.mark.parametrize(("feature", "shown_by"), [row for page in PAGES for row in rows(page)])
def test_named_tests_exist(feature: str, shown_by: str) -> None:
    named = re.findall(r"`([\w/]+\.py)(?:::(\w+))?(?:\[.*?\])?`", shown_by)
    assert named, f"the row of {feature!r} names no test"
    for file, function in named:
        path = ROOT / file
        assert path.is_file(), f"{feature!r} names {file}, which does not exist"
        if function:
            tree = ast.parse(path.read_text(encoding="utf-8"))
            functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
            assert function in functions, f"{feature!r} names {function}, which {file} does not have"
