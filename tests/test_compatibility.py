# SPDX-License-Identifier: Apache-2.0
"""docs/compatibility.md: no row without a test that exists."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "compatibility.md"


def rows() -> list[tuple[str, str]]:
    """Feature and the tests named for it, of every table."""
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return [(row[0], row[-1]) for row in cells if row[0] not in ("feature", "---")]


def test_page_has_rows() -> None:
    assert len(rows()) > 40


@pytest.mark.parametrize(("feature", "shown_by"), rows())
def test_named_tests_exist(feature: str, shown_by: str) -> None:
    named = re.findall(r"`([\w/]+\.py)(?:::(\w+))?(?:\[.*?\])?`", shown_by)
    assert named, f"the row of {feature!r} names no test"
    for file, function in named:
        path = ROOT / ("" if file.startswith("tests/") else "tests") / file
        assert path.is_file(), f"{feature!r} names {file}, which is gone"
        if function:
            tree = ast.parse(path.read_text(encoding="utf-8"))
            functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
            assert function in functions, f"{feature!r} names {function}, which {file} does not have"
