# SPDX-License-Identifier: Apache-2.0
"""The logs of a training: TensorBoard's files, and the trackers that are asked for, through their own libraries.

A training has one run in each tracker, whatever number of starts it takes: `trackers.json` in its folder names them.
"""

import json
import os
import secrets
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from redrafter_training.config.job import Job
from redrafter_training.trainer.tensorboard import Recorder, finite
from redrafter_vllm.utils.atomic import write_text
from redrafter_vllm.utils.install import install_training
from redrafter_vllm.utils.messages import sentence

RUNS_FILE = "trackers.json"
NAME = "redrafter"  # of the project or experiment, unless the library's own variable names another
# What is used of each library, to recognise another module of its name.
USED = {"wandb": ("init", "login", "setup"), "mlflow": ("MlflowClient", "get_tracking_uri")}


class TrackerError(ValueError):
    """A tracker that cannot be used."""


class Tracker(ABC):
    """One run of a tracker, open for more figures."""

    @abstractmethod
    def __init__(self, named: Mapping[str, str], job: Job, settings: Mapping[str, Any]) -> None:
        """Opens the run that `begin_runs` has `named`."""

    @abstractmethod
    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Finite figures after a number of steps."""

    @abstractmethod
    def close(self, state: str) -> None:
        """Ends the writing; `state` is running (there will be more), finished, stopped or failed."""


class WandbRun(Tracker):
    """A run of Weights & Biases. Its steps are a figure, since its own may not start again from a checkpoint's."""

    def __init__(self, named: Mapping[str, str], job: Job, settings: Mapping[str, Any]) -> None:
        self._run = library("wandb").init(
            id=named["run"],
            project=os.environ.get("WANDB_PROJECT", NAME),
            name=os.environ.get("WANDB_NAME", job.out_dir.name),
            dir=os.environ.get("WANDB_DIR", str(job.run_folder)),
            config=dict(settings),
            resume="allow",
        )
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        self._run.log({"step": step, **figures})

    def close(self, state: str) -> None:
        self._run.finish(exit_code={"stopped": 130, "failed": 1}.get(state, 0))


class MlflowRun(Tracker):
    """A run of MLflow."""

    def __init__(self, named: Mapping[str, str], job: Job, settings: Mapping[str, Any]) -> None:
        self._client, self._run = library("mlflow").MlflowClient(named["uri"]), named["run"]
        self._client.update_run(self._run, status="RUNNING")

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._client.log_metric(self._run, name, value, step=step)

    def close(self, state: str) -> None:
        if state != "running":
            ended = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
            self._client.set_terminated(self._run, ended[state])


KINDS: dict[str, type[Tracker]] = {"wandb": WandbRun, "mlflow": MlflowRun}


def trackers(job: Job) -> list[str]:
    """The trackers that a job logs to."""
    return [name for name in USED if getattr(job, name)]


def library(name: str) -> Any:
    """The library of a tracker.

    Raises TrackerError where it is missing, or something else has its name.
    """
    install = install_training(name)
    try:
        module = import_module(name)
    except ImportError as problem:
        raise TrackerError(f"--{name} needs a library that cannot be imported ({problem}): {install}") from None
    if lacking := [used for used in USED[name] if not hasattr(module, used)]:
        place = getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", ())), "somewhere")
        raise TrackerError(
            f"--{name} needs the library {name}, but the module of this name in {place} has no {lacking[0]}: remove or "
            f"rename it, then {install}"
        )
    return module


def check_trackers(job: Job) -> None:
    """Checks that the libraries are there, and that Weights & Biases takes figures from this machine.

    Raises TrackerError.
    """
    for name in trackers(job):
        module = library(name)
        if name == "wandb" and module.setup().settings.mode in ("online", "shared"):
            try:
                module.login()  # asks for a key at a terminal
            except Exception as problem:  # of the library's own types, and of its network's
                raise TrackerError(
                    f"--wandb: {sentence(problem)} (or set WANDB_MODE=offline, and upload later with wandb sync)"
                ) from None


def begin_runs(job: Job, settings: Mapping[str, Any], *, continued: bool) -> None:
    """Makes a run in each tracker, unless a `continued` training has one, and stores their names.

    Raises TrackerError where MLflow's store cannot be reached.
    """
    path = job.run_folder / RUNS_FILE
    runs = _stored(path) if continued else {}
    for name in trackers(job):
        if name not in runs:
            runs[name] = {"run": secrets.token_hex(8)} if name == "wandb" else _new_mlflow_run(job, settings)
    if runs or path.exists():
        write_text(path, json.dumps(runs, indent=2) + "\n")


def _new_mlflow_run(job: Job, settings: Mapping[str, Any]) -> dict[str, str]:
    mlflow = library("mlflow")
    experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", NAME)
    uri = mlflow.get_tracking_uri()
    try:
        client = mlflow.MlflowClient(uri)
        found = client.get_experiment_by_name(experiment)
        number = found.experiment_id if found is not None else client.create_experiment(experiment)
        run = client.create_run(number, run_name=job.out_dir.name)
        for key, value in _flat(settings):
            client.log_param(run.info.run_id, key, value)
    except Exception as problem:  # of many types, by kind of store
        raise TrackerError(
            f"--mlflow: the store {uri} cannot be used ({sentence(problem)}): set MLFLOW_TRACKING_URI to another one"
        ) from None
    return {"run": run.info.run_id, "uri": uri}


class Logs:
    """TensorBoard's files and the trackers of one process; without a job they take figures and drop them.

    A tracker that fails in the middle of a training does not end it: a message says so, and the others go on.
    """

    def __init__(self, job: Job | None, settings: Mapping[str, Any], *, purge_step: int | None = None) -> None:
        self._recorder = Recorder(None if job is None else job.run_folder / "logs", purge_step=purge_step)
        self._trackers = {} if job is None else open_trackers(job, settings)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        self._recorder.log(step, figures)
        self._each(lambda tracker: tracker.log(step, finite(figures)))

    def close(self, state: str) -> None:
        """See `Tracker.close`."""
        self._recorder.close()
        self._each(lambda tracker: tracker.close(state))

    def _each(self, do: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                do(tracker)
            except Exception as problem:  # of the library's or its network's types
                del self._trackers[name]
                print(f"{name} takes no more figures ({sentence(problem)}); the training goes on", file=sys.stderr)


def open_trackers(job: Job, settings: Mapping[str, Any]) -> dict[str, Tracker]:
    """The runs that `begin_runs` has named.

    Raises TrackerError where one cannot be opened.
    """
    runs, opened = _stored(job.run_folder / RUNS_FILE), {}
    for name in trackers(job):
        try:
            opened[name] = KINDS[name](runs[name], job, settings)
        except Exception as problem:
            raise TrackerError(f"--{name}: its run cannot be opened: {sentence(problem)}") from problem
    return opened


def log_result(job: Job, step: int, figures: Mapping[str, float]) -> None:
    """The figures that are measured after a training, as its last entry in the trackers."""
    if not trackers(job):
        return
    try:
        opened = open_trackers(job, {})
        for tracker in opened.values():
            tracker.log(step, finite(figures))
            tracker.close("finished")
    except Exception as problem:  # the drafter is complete
        print(f"the results are not in the trackers: {sentence(problem)}", file=sys.stderr)


def _stored(path: Path) -> dict[str, dict[str, str]]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """The leaves of nested settings, by `outer.inner`."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
