# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

import pytest

from benchmarks.training.whole_step import main
from tests.models import save_random_llama


def test_every_kind_of_step_on_the_same_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_random_llama(tmp_path / "target")
    sizes = ["--batch-size", "2", "--window", "24", "--chunk", "8", "--rounds", "2", "--draft-vocab-size", "16"]
    assert main(["--target", str(tmp_path / "target"), *sizes, "--out", str(tmp_path / "results")]) == 0
    (path,) = (tmp_path / "results").iterdir()
    found = json.loads(path.read_text())
    losses = found["losses"]
    assert {name: len(values) for name, values in losses.items()} == {
        "fp32": 3,
        "mixed": 3,
        "mixed, states read": 3,
    }
    for name in ("mixed", "mixed, states read"):
        assert losses[name] == pytest.approx(losses["fp32"], rel=0.03)
        assert losses[name] != losses["fp32"]
    speeds, epochs = found["tokens_per_second"], found["epochs"]
    assert epochs["1"] < epochs["2"] < epochs["5"] < speeds["mixed, states read"]
    shown = capsys.readouterr().out
    assert "states read, 3 epochs" in shown and "ratio" in shown


def test_a_target_that_is_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--target", str(tmp_path / "none")]) != 0
    assert "is not a folder" in capsys.readouterr().err
