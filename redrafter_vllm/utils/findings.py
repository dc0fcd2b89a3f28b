# SPDX-License-Identifier: Apache-2.0
"""Findings about an installation, a pair or a measurement: what is well, what is not, and how to mend it."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path


class Level(StrEnum):
    """How a finding concerns the user."""

    OK = "ok"
    NOTE = "note"  # works, but not as well as it could, or only in part
    PROBLEM = "problem"


MARKS = {Level.OK: "ok", Level.NOTE: "note", Level.PROBLEM: "PROBLEM"}


@dataclass(frozen=True)
class Finding:
    """One line of a report."""

    level: Level
    what: str
    says: str
    remedy: str = ""


def report(findings: Sequence[Finding]) -> str:
    """The findings as text, remedies below them, at the end the number of problems."""
    width = max(len(finding.what) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{MARKS[finding.level]:<8}{finding.what:<{width}}  {finding.says}")
        if finding.remedy:
            lines.append(f"{'':<8}{'':<{width}}  -> {finding.remedy}")
    problems = sum(finding.level is Level.PROBLEM for finding in findings)
    lines.append(f"{problems} problem{'' if problems == 1 else 's'}")
    return without_home("\n".join(lines) + "\n")


def without_home(text: str) -> str:
    """`text` with `~` for the home folder, so that it can be shown to others."""
    home = str(Path.home())
    return text if home == "/" else text.replace(home, "~")


def has_problem(findings: Sequence[Finding]) -> bool:
    """Whether something keeps what was examined from working."""
    return any(finding.level is Level.PROBLEM for finding in findings)
