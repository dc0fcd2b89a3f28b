# SPDX-License-Identifier: Apache-2.0
"""The pages whose tables end with the test that shows a row: no row without a test that exists."""

import ast
import re

import pytest

from tests.paths import ROOT

PAGES = ("reference/compatibility.md", "reference/reported_cases.md", "exactness.md", "cluster.md")


def rows(page: str) -> list[tuple[str, str]]:
    """Feature, case or step and the tests named for it, of every table of a page."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    bodies = re.findall(r"^\|(?:---\|)+\n((?:\|.*\n)+)", text, re.MULTILINE)
    lines = [line for body in bodies for line in body.splitlines()]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return [(row[0], row[-1]) for row in cells]


@pytest.mark.parametrize(("page", "min_rows"), zip(PAGES, (40, 25, 12, 3), strict=True))
def test_page_has_rows(page: str, min_rows: int) -> None:
    assert len(rows(page)) > min_rows


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
