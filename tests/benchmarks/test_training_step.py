# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

import pytest
import torch

from benchmarks.training import training_step
from benchmarks.training.peak_memory import PeakMemory


@pytest.mark.slow
def test_record_of_a_small_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = "--vocab-sizes 60 300 --draft-vocab-size 50 --hidden-size 8 --window 20 --chunk 6 --rounds 2"
    assert training_step.main([*options.split(), "--label-share", "0.5", "--out", str(tmp_path)]) == 0
    (file,) = tmp_path.glob("training-step_*.json")
    report = json.loads(file.read_text())
    assert report["command"].startswith("python -m benchmarks.training.training_step --vocab-sizes 60 300")
    assert report["config"]["chunk"] == 6
    assert report["versions"]["torch"] == torch.__version__
    for size, row in zip((60, 300), report["results"], strict=True):
        assert row["vocab_size"] == size
        # Two windows of 20 tokens and drafts of 4: 16 positions each.
        assert row["lean"]["positions_per_second"] == pytest.approx(32 / row["lean"]["seconds"])
        assert len(row["straightforward"]["rounds"]) == 2
        # bf16 products in another order
        assert row["gradient_difference"] < 0.05
        first = [row[form]["rounds"][0]["loss"] for form in training_step.FORMS]
        assert first[0] == pytest.approx(first[1], rel=0.02)
    assert "positions/s" in capsys.readouterr().out


def test_impossible_options() -> None:
    with pytest.raises(ValueError, match="at least one round"):
        training_step.Options(rounds=0)


def test_peak_memory_includes_freed_memory() -> None:
    memory = PeakMemory(torch.device("cpu"))
    block = torch.ones(64 << 20, dtype=torch.uint8)
    del block
    assert 60 << 20 < memory.added() < 90 << 20
