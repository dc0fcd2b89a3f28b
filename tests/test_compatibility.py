# SPDX-License-Identifier: Apache-2.0
"""docs/reference/compatibility.md and docs/reference/reported_cases.md: no row without a test that exists."""

import ast
import re

import pytest

from tests.paths import ROOT

PAGES = ("compatibility.md", "reported_cases.md")


def rows(page: str) -> list[tuple[str, str]]:
    """Feature or case and the tests named for it, of every table of a page."""
    text = (ROOT / "docs" / "reference" / page).read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return [(row[0], row[-1]) for row in cells if row[0] not in ("feature", "case", "---")]


@pytest.mark.parametrize(("page", "min_rows"), [("compatibility.md", 40), ("reported_cases.md", 25)])
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
