# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path
from typing import Any

import pytest

from redrafter_vllm.adaptive.stored import stored_calibration
from redrafter_vllm.adaptive.survival import Coefficients


def store(folder: Path, calibration: Any) -> Path:
    (folder / "training.json").write_text(json.dumps({"calibration": calibration}))
    return folder


def test_what_training_has_stored(tmp_path: Path) -> None:
    found = stored_calibration(store(tmp_path, {"slope": 0.7, "intercepts": [-0.5, -1]}))
    assert found == Coefficients(0.7, (-0.5, -1.0))
    assert found.at_depths(4) == [-0.5, -1.0, -1.0, -1.0]


@pytest.mark.parametrize(
    "calibration",
    [
        None,
        [],
        {},
        {"slope": 0.7},
        {"slope": "0.7", "intercepts": []},
        {"slope": True, "intercepts": []},
        {"slope": -1, "intercepts": [0.0]},
        {"slope": 0, "intercepts": [0.0]},
        {"slope": 1, "intercepts": [None]},
        {"slope": 1, "intercepts": 0.5},
    ],
)
def test_what_cannot_be_used_is_as_none(tmp_path: Path, calibration: Any) -> None:
    assert stored_calibration(store(tmp_path, calibration)) is None


def test_a_drafter_without_a_report(tmp_path: Path) -> None:
    assert stored_calibration(tmp_path) is None
