# SPDX-License-Identifier: Apache-2.0
"""Export of a trained drafter with its report (`training.json`) and its model card."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from redrafter_training.trainer.card import write_training_card
from redrafter_vllm.checkpoint.places import PROVENANCE_FILE, drafter_folder, read_provenance
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
    """Writes `drafter` in Apple's layout and in `dtype`, `report` as `training.json`, and a card, to directory `out`.

    If writing fails, `out` keeps its content; see `drafter_folder`.

    Args:
        overwrite: also replace a drafter of another run than `report["run"]`.

    Raises:
        PlaceError: `out` contains something else, or a drafter that must not be replaced.
    """
    with drafter_folder(out, replace=overwrite or is_of_run(out, report.get("run"))) as made:
        drafter.to(dtype).save_pretrained(made)
        (made / PROVENANCE_FILE).write_text(_as_json(report))
        write_training_card(made, report)


def update_report(out: Path, report: Mapping[str, Any]) -> None:
    """Replaces the report and the card beside an exported drafter."""
    write_text(out / PROVENANCE_FILE, _as_json(report))
    write_training_card(out, report)


def is_of_run(out: Path, run: object) -> bool:
    """Whether `out` contains a drafter that the run of this name exported."""
    return run is not None and read_provenance(out).get("run") == run


def _as_json(report: Mapping[str, Any]) -> str:
    return strict_json.dumps(report, indent=2, default=str) + "\n"
