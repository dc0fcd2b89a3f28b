# SPDX-License-Identifier: Apache-2.0
"""Measurements as kept: what was found, beside the command, day, versions and machine that it was found with."""

import shlex
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.demo.report import store, versions
from benchmarks.machine import hardware

RESULTS = Path(__file__).parent / "results"


def record(module: str, argv: Sequence[str], found: dict[str, Any], folder: Path) -> Path:
    """Writes `<folder>/<module>_<machine>_<day>.json`, whole or not at all, and returns its path."""
    machine, description = hardware("cpu")
    about = {
        "command": shlex.join(["python", "-m", f"benchmarks.{module}", *argv]),
        "date": date.today().isoformat(),
        "versions": versions(),
        "hardware": description,
    }
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{module.replace('_', '-')}_{machine}_{about['date']}.json"
    store(file, about | found)
    return file
