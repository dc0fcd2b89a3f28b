# SPDX-License-Identifier: Apache-2.0
"""The fenced blocks of README and docs/, and what is said of each: a comment in the line before it.

`<!-- run -->`              a test runs it (`run: engine`: with an engine)
`<!-- test: FILE::NAME -->` that test does the same, with names of its own in place of the capitals
`<!-- needs: WHAT, … -->`   cannot be run by a test, because of WHAT (see `NEEDS`)
`<!-- excerpt -->`          lines that mean nothing by themselves

`<!-- all blocks need: WHAT -->` holds for all blocks of a page without a comment of their own. Blocks in another
language than a shell's or Python (text, json, yaml) show something and need none.
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.paths import ROOT

# Dated entries show what was typed on their day.
PAGES = [ROOT / "README.md", *sorted(set((ROOT / "docs").rglob("*.md")) - {ROOT / "docs" / "dev" / "log.md"})]

RUNNABLE = ("", "bash", "python")
NEEDS = {
    "a Kubernetes cluster",
    "a container engine",
    "a GPU",
    "a model",  # of the reader's own, or of the hub
    "a network",
    "hours",
    "minutes",
    "several machines",
}

BLOCK = re.compile(r"(?:^<!-- ([^\n]*) -->\n)?^( *)```(\w*)\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
WHOLE_PAGE = re.compile(r"^<!-- all blocks need: ([^\n]*) -->$", re.MULTILINE)

# README's blocks have no comments: what would stand there, by the beginning of the block.
README = {
    'target     "Why is the sky blue?"': "excerpt",
    "make setup": "needs: a network, minutes",
    "pip install '.[cuda]'": "needs: a network",
    "vllm serve MODEL": "test: tests/engine/test_serve.py::test_completions_are_those_of_plain_vllm",
    "redrafter fetch-smollm2": "needs: a network, minutes",
    "redrafter pipeline": "needs: hours",
    "redrafter train --target MODEL": "needs: a model",
    "redrafter watch": "needs: a model, minutes",
    "make demo": "needs: minutes",
}


@dataclass(frozen=True)
class Block:
    """A fenced block."""

    page: Path
    line: int  # of its fence
    language: str
    text: str
    said: str  # the comment, without its brackets; empty if there is none

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def kind(self) -> str:
        """run, test, needs, excerpt, or empty."""
        return self.said.partition(":")[0]

    @property
    def detail(self) -> str:
        return self.said.partition(":")[2].strip()

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command of a shell block; comments and variables before a command are left out."""
        if self.language == "python":
            return []
        joined = re.sub(r"\\\n", " ", self.text)
        found = []
        for command in logical_lines(joined):
            words = shlex.split(command, comments=True)
            while words and re.match(r"[A-Z_]+=", words[0]):
                words.pop(0)
            if words:
                found.append([Path(words[0]).name if words[0].startswith(".venv/") else words[0], *words[1:]])
        return found


def logical_lines(text: str) -> Iterator[str]:
    """Lines, joined where a quotation goes on."""
    waiting = ""
    for line in text.splitlines():
        waiting = f"{waiting}\n{line}" if waiting else line
        try:
            shlex.split(waiting, comments=True)
        except ValueError:  # an open quotation
            continue
        yield waiting
        waiting = ""
    assert not waiting, f"a quotation is open: {waiting}"


def blocks(page: Path) -> list[Block]:
    """The blocks of a page that somebody might run."""
    text = page.read_text(encoding="utf-8")
    default = WHOLE_PAGE.search(text)
    found = []
    for match in BLOCK.finditer(text):
        said, _, language, body = match.groups()
        if language not in RUNNABLE:
            continue
        if page.name == "README.md" and page.parent == ROOT:
            said = next((known for start, known in README.items() if body.startswith(start)), "")
        if not said and default:
            said = f"needs: {default[1]}"
        line = text[: match.start()].count("\n") + 1 + (1 if match[1] else 0)
        found.append(Block(page, line, language, body, said or ""))
    return found


ALL = [block for page in PAGES for block in blocks(page)]
