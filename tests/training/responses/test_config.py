# SPDX-License-Identifier: Apache-2.0
"""Options of response generation."""

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from redrafter_training.cli import attribute_help, parse_keys
from redrafter_training.config.job import Job
from redrafter_training.config.recipe import Budget, DistillConfig, ResponseConfig
from redrafter_training.responses.config import ResponseJob


def test_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert {entry.name for entry in fields(ResponseJob)} == attribute_help(ResponseJob).keys()
    parse: Callable[[list[str]], ResponseJob] = lambda argv: parse_keys(ResponseJob, "x", "y", argv)  # noqa: E731
    file = tmp_path / "keys.yaml"
    file.write_text("target: t\ndata: stdlib\nout: o\ntemperatures: [0.0, 1.0]\nengine: {max_num_seqs: 4}\n")
    job = parse(["--config", str(file), "--seed", "3"])
    wanted = ResponseJob(
        target="t", data="stdlib", out=Path("o"), temperatures=(0.0, 1.0), seed=3, engine={"max_num_seqs": 4}
    )
    assert job == wanted
    # Between two starts the engine's size and the workers may change, but nothing that changes the output.
    assert job.identity() == replace(wanted, engine={}, num_workers=4).identity()
    assert job.identity() != replace(wanted, engine={"quantization": "fp8"}).identity()
    for wrong in (["--shard-size", "0"], ["--window", "100"], ["--temperatures", "[-1.0]"]):
        with pytest.raises(SystemExit):
            parse(["--config", str(file), *wrong])
    capsys.readouterr()


def test_folders_are_found_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = DistillConfig(Budget(1), responses=ResponseConfig(folders=("answers",)))
    assert config.absolute().responses.folders == (str(tmp_path / "answers"),)
    assert Job("t", "stdlib").identity(config) == Job("t", "stdlib").identity(config.absolute())


@pytest.mark.parametrize(
    "change",
    [
        {"count": -1},
        {"temperatures": ()},
        {"temperatures": (-1.0,)},
        {"min_prompt": 9, "max_prompt": 8},
        {"longest_repeat": -1},
        {"temperatures": (float("inf"),)},
        {"longest_repeat": 1 << 25},
    ],
)
def test_impossible_settings(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        ResponseConfig(**change)
    with pytest.raises(ValueError):
        ResponseJob(target="t", data="stdlib", out=Path("o"), **{"count": 1, **change})
