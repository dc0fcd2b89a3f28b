# SPDX-License-Identifier: Apache-2.0
"""docs/troubleshooting.md quotes messages that the sources have."""

import ast
import re
from functools import lru_cache

import pytest

from tests.paths import ROOT

PAGE = ROOT / "docs" / "troubleshooting.md"
TABLE = re.compile(r"<!-- messages of: (\S+) -->\n\n((?:\|.*\n)+)")
MESSAGES = [
    (folder, message)
    for folder, table in TABLE.findall(PAGE.read_text(encoding="utf-8"))
    for message in re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)
]


@lru_cache
def strings(folder: str) -> tuple[str, ...]:
    """Every string of the sources, with … for what is filled in."""
    found = []
    for file in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return tuple(found)


def test_the_page_has_messages() -> None:
    rows = re.findall(r"^\| `.*…?.*` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(MESSAGES) > 35 and len(rows) == len(MESSAGES)


@pytest.mark.parametrize(("folder", "message"), MESSAGES)
def test_messages_exist(folder: str, message: str) -> None:
    parts = [part.strip() for part in message.split("…") if len(part.strip()) > 2]
    assert any(all(part in text for part in parts) for text in strings(folder)), f"no message in {folder} has {parts}"
