# SPDX-License-Identifier: Apache-2.0
"""A trained drafter with its provenance, put in its place in one go."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from redrafter_vllm.checkpoint.places import PROVENANCE_FILE, drafter_folder
from redrafter_vllm.model.drafter import Drafter
from redrafter_vllm.utils import strict_json
from redrafter_vllm.utils.atomic import write_text


def export(
    drafter: Drafter,
    out: Path,
    report: Mapping[str, Any],
    dtype: torch.dtype = torch.bfloat16,
    *,
    overwrite: bool = False,
) -> None:
    """Writes `drafter` in Apple's layout and in `dtype`, and `report` as `training.json`, to directory `out`.

    An `out` that could not be written completely keeps what it had; see `drafter_folder`.

    Args:
        overwrite: replace a drafter of another run, too; that of the same one, as `report["run"]` names it, goes.

    Raises:
        PlaceError: `out` holds something else, or a drafter that is to stay.
    """
    with drafter_folder(out, replace=overwrite or is_of_run(out, report.get("run"))) as made:
        drafter.to(dtype).save_pretrained(made)
        (made / PROVENANCE_FILE).write_text(_as_json(report))


def update_report(out: Path, report: Mapping[str, Any]) -> None:
    """Replaces the report beside an exported drafter."""
    write_text(out / PROVENANCE_FILE, _as_json(report))


def is_of_run(out: Path, run: object) -> bool:
    """Whether `out` holds a drafter that the run of that name has exported."""
    try:
        return run is not None and strict_json.loads((out / PROVENANCE_FILE).read_text())["run"] == run
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _as_json(report: Mapping[str, Any]) -> str:
    return strict_json.dumps(report, indent=2, default=str) + "\n"
