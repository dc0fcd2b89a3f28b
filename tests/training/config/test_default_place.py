# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest

from redrafter_training.config.job import Job
from redrafter_vllm.checkpoint.locate import resolve_drafter


def test_serving_looks_where_training_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REDRAFTER_CHECKPOINT", raising=False)
    monkeypatch.setenv("REDRAFTER_HOME", str(tmp_path / "home"))
    local = tmp_path / "target"
    local.mkdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for target in (str(local), "org/name"):
        monkeypatch.chdir(tmp_path)
        out = Job(target, "stdlib").out_dir
        out.mkdir(parents=True)
        (out / "config.json").write_text("{}")
        monkeypatch.chdir(elsewhere)
        assert resolve_drafter("redrafter", target) == out
