# SPDX-License-Identifier: Apache-2.0
"""Weights & Biases and MLflow: through their own libraries, without a network, over several starts of a training."""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from redrafter_training.__main__ import main
from redrafter_training.config.job import Job
from redrafter_training.run import trackers as module
from redrafter_training.run.trackers import (
    RUNS_FILE,
    Logs,
    Tracker,
    TrackerError,
    begin_runs,
    check_trackers,
    log_result,
)
from tests.training.small_command import ASSET, small_command, write_data

SETTINGS = {"target": "t", "budget": {"max_steps": 4, "epochs": None}}
FIGURES = {"train/loss": 2.5, "train/gradient_norm": 0.25, "redrafter1_kl": 1.5, "train/bad": float("nan")}


def job_in(tmp_path: Path, *names: str) -> Job:
    return Job("target", "data", out=tmp_path / "drafter", **dict.fromkeys(names, True))


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_library(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(TrackerError, match=rf"--{name} needs a library .*pip install './training\[{name}\]'"):
        check_trackers(job_in(tmp_path, name))
    check_trackers(job_in(tmp_path))


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_another_module_of_the_name(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    other = ModuleType(name)
    other.__file__ = "/somewhere/else.py"
    monkeypatch.setitem(sys.modules, name, other)
    with pytest.raises(TrackerError, match=r"/somewhere/else\.py has no .*remove or rename it"):
        check_trackers(job_in(tmp_path, name))


def test_the_command_refuses_before_it_writes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    command = small_command(ASSET, write_data(tmp_path / "data.json"), tmp_path / "out", "--wandb")
    for more in ([], ["--dry-run"]):
        assert main([*command, *more]) == 1
        message = capsys.readouterr().err
        assert "--wandb needs a library" in message and message.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["data.json"]


class Broken(Tracker):
    """Fails from its second entry on."""

    def __init__(self, named: Mapping[str, str], job: Job, settings: Mapping[str, Any]) -> None:
        self.entries: list[tuple[int, dict[str, float]]] = []

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        if self.entries:
            raise ConnectionError("the server is gone")
        self.entries.append((step, dict(figures)))

    def close(self, state: str) -> None:
        raise AssertionError("it has failed before")


def test_a_tracker_that_fails_does_not_end_the_training(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(module.KINDS, "wandb", Broken)
    monkeypatch.setattr(module, "_stored", lambda path: {"wandb": {"run": "x"}})
    logs = Logs(job_in(tmp_path, "wandb"), SETTINGS)
    broken = logs._trackers["wandb"]
    for step in (1, 2, 3):
        logs.log(step, FIGURES)
    logs.close("running")
    assert isinstance(broken, Broken)
    # Figures that are not finite are left out, held-out ones have a prefix.
    assert broken.entries == [(1, {"train/loss": 2.5, "train/gradient_norm": 0.25, "held_out/redrafter1_kl": 1.5})]
    assert capsys.readouterr().err == "wandb takes no more figures (the server is gone); the training goes on\n"


def two_starts(tmp_path: Path, name: str) -> dict[str, str]:
    """A training that is interrupted after step 2, continued to step 4, and measured; the run as it is stored."""
    job = job_in(tmp_path, name)
    check_trackers(job)
    job.run_folder.mkdir()
    for continued, steps, state in ((False, (1, 2), "stopped"), (True, (3, 4), "running")):
        begin_runs(job, SETTINGS, continued=continued)
        logs = Logs(job, SETTINGS)
        for step in steps:
            logs.log(step, FIGURES | {"train/loss": float(step)})
        logs.close(state)
    log_result(job, 4, {"tokens_per_step/4x4": 2.75})
    stored = json.loads((job.run_folder / RUNS_FILE).read_text())
    assert list(stored) == [name]
    return dict(stored[name])


@pytest.mark.slow
def test_mlflow_keeps_one_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow", reason="MLflow is not installed (the extra `mlflow`)")
    pytest.importorskip("sqlalchemy", reason="MLflow's SQLite store needs SQLAlchemy")
    uri = f"sqlite:///{tmp_path / 'store.db'}"
    monkeypatch.setattr(mlflow, "get_tracking_uri", lambda: uri)
    named = two_starts(tmp_path, "mlflow")
    assert named["uri"] == uri
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("redrafter")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_id == named["run"] and run.info.run_name == "drafter"
    assert run.info.status == "FINISHED"
    assert run.data.params == {"target": "t", "budget.max_steps": "4", "budget.epochs": "None"}
    history = client.get_metric_history(named["run"], "train/loss")
    assert [(entry.step, entry.value) for entry in history] == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0)]
    assert run.data.metrics["tokens_per_step/4x4"] == 2.75
    assert "train/bad" not in run.data.metrics
    # A training that starts over is another run.
    begin_runs(job_in(tmp_path, "mlflow"), SETTINGS, continued=False)
    assert len(client.search_runs([experiment.experiment_id])) == 2


def test_an_unusable_store_of_mlflow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow", reason="MLflow is not installed (the extra `mlflow`)")
    monkeypatch.setattr(mlflow, "get_tracking_uri", lambda: "nothing://here")
    with pytest.raises(TrackerError, match=r"the store nothing://here cannot be used .*MLFLOW_TRACKING_URI"):
        begin_runs(job_in(tmp_path, "mlflow"), SETTINGS, continued=False)
    assert not (tmp_path / "drafter.run").exists()


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    wandb = pytest.importorskip("wandb", reason="Weights & Biases is not installed (the extra `wandb`)")
    wandb.teardown()  # which forgets the variables of an earlier test
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    yield wandb
    wandb.teardown()


@pytest.mark.process
@pytest.mark.slow
def test_wandb_offline(offline: Any, tmp_path: Path) -> None:
    named = two_starts(tmp_path, "wandb")
    found = (tmp_path / "wandb").glob(f"offline-run-*/run-{named['run']}.wandb")
    # Folders are named by the second; a further one of the same second has the first one's name and a number.
    files = sorted(found, key=lambda file: file.parent.name)
    assert len(files) == 3  # one for each start, and one for the result: `wandb sync` puts them together by their id
    first, second, result = (file.read_bytes() for file in files)
    for content, key in ((first, b"train/gradient_norm"), (second, b"held_out/redrafter1_kl"), (result, b"4x4")):
        assert key in content
    assert b"max_steps" in first and b"train/bad" not in first


@pytest.mark.process
def test_wandb_without_a_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wandb = pytest.importorskip("wandb", reason="Weights & Biases is not installed (the extra `wandb`)")
    wandb.teardown()
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    with pytest.raises(TrackerError, match=r"--wandb: No API key configured.*WANDB_MODE=offline"):
        check_trackers(job_in(tmp_path, "wandb"))
    wandb.teardown()
