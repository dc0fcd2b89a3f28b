# SPDX-License-Identifier: Apache-2.0
"""Stored measurements: the figures with the command, date, versions and hardware that they were measured with."""

import shlex
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from redrafter_vllm.bench.machine import hardware, versions
from redrafter_vllm.utils import strict_json
from redrafter_vllm.utils.atomic import write_text

RESULTS = Path(__file__).parent / "results"


def command(module: str, argv: Sequence[str]) -> str:
    """The command line that repeats a measurement."""
    return shlex.join(["python", "-m", module, *argv])


def record(
    module: str,
    argv: Sequence[str],
    found: dict[str, Any],
    folder: Path,
    device: str = "cpu",
    *,
    name: str | None = None,
) -> Path:
    """Write `<folder>/<name>_<hardware>_<date>.json` and return its path; without a name, the last part of `module`."""
    machine, description = hardware(device)
    about = {
        "command": command(module, argv),
        "date": date.today().isoformat(),
        "versions": versions(),
        "hardware": description,
    }
    stem = name or module.rpartition(".")[2].replace("_", "-")
    file = folder / f"{stem}_{machine}_{about['date']}.json"
    store(file, about | found)
    return file


def store(path: Path, report: dict[str, Any]) -> None:
    """Write `report` to `path` as JSON, atomically."""
    write_text(path, strict_json.dumps(report, indent=2) + "\n")
