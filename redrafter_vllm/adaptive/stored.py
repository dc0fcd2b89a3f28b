# SPDX-License-Identifier: Apache-2.0
"""The calibration that a drafter's training has stored in its `training.json`."""

import math
from pathlib import Path
from typing import Any

from redrafter_vllm.adaptive.survival import Coefficients
from redrafter_vllm.checkpoint.places import read_provenance

CALIBRATION = "calibration"


def stored_calibration(drafter: Path) -> Coefficients | None:
    """None for a drafter without one, and where what is stored cannot be used."""
    stored: Any = read_provenance(drafter).get(CALIBRATION)
    if not isinstance(stored, dict):
        return None
    slope: Any = stored.get("slope")
    intercepts: Any = stored.get("intercepts")
    if not isinstance(intercepts, list) or not all(map(_is_number, (slope, *intercepts))):
        return None
    return Coefficients(float(slope), tuple(map(float, intercepts))) if slope > 0 else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
