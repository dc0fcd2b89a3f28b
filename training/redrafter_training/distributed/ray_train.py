# SPDX-License-Identifier: Apache-2.0
"""The training loop's processes as Ray Train workers. Beside this module, `ingest` and `answer_workers` know Ray."""

import json
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from types import MethodType
from typing import Any

import ray
import ray.train
import torch
import torch.distributed as dist
from ray.train import (
    Checkpoint,
    CheckpointConfig,
    FailureConfig,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
    WorkerGroupError,
)
from ray.train.collective import barrier, broadcast_from_rank_zero
from ray.train.torch import TorchConfig, TorchTrainer, get_device, get_devices
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from redrafter_training.distributed import checkpoints
from redrafter_training.distributed.checkpoints import CheckpointWriteError, Write
from redrafter_training.distributed.context import TrainContext
from redrafter_training.utils.command import Interruption, TrainingStoppedError, WorkersFailedError

POLL_SECONDS = 0.2
SNAPSHOT = "checkpoint_manager_snapshot.json"


@dataclass(frozen=True)
class Fleet:
    """How many workers a training gets, and how often they may die."""

    num_workers: int | tuple[int, int] = 1  # a pair is an elastic range
    use_gpu: bool = False
    max_failures: int = 3
    keep: int = 2
    gpus_per_worker: int = 1

    @property
    def backend(self) -> str:
        return "nccl" if self.use_gpu else "gloo"

    @property
    def resources(self) -> dict[str, float] | None:
        """Of each worker; None leaves it to Ray."""
        return {"GPU": self.gpus_per_worker} if self.use_gpu and self.gpus_per_worker > 1 else None


class RayContext(TrainContext):
    """One worker of a Ray Train group.

    Ray stores what rank 0 reports and remembers the newest checkpoint. Should its record be lost, by a kill in the
    middle of writing it, the newest complete checkpoint in the run's directory takes its place.
    """

    def __init__(self, directory: Path) -> None:
        around = ray.train.get_context()
        self.rank = around.get_world_rank()
        self.world_size = around.get_world_size()
        self.device = get_device()
        self.devices = get_devices()
        self._directory = directory
        self._wish = StopWish(directory)

    def latest_checkpoint(self) -> Path | None:
        recorded = ray.train.get_checkpoint()
        offered = [checkpoints.latest(self._directory), Path(recorded.path) if recorded is not None else None]
        newest = max((path for path in offered if path is not None), key=lambda path: path.name, default=None)
        chosen: Path | None = broadcast_from_rank_zero(newest)
        if chosen is not None and not chosen.is_dir():
            raise FileNotFoundError(
                f"{chosen} is not on worker {self.rank}'s machine: --run-dir must be shared storage"
            )
        return chosen

    def report(self, step: int, metrics: Mapping[str, float], write: Write | None = None) -> None:
        published = {**metrics, "step": step, "world_size": self.world_size}
        if write is None or self.rank != 0:
            ray.train.report(published)
            return
        with tempfile.TemporaryDirectory(prefix="redrafter-") as scratch:
            try:
                checkpoints.fill(Path(scratch), write)
                ray.train.report(
                    published,
                    checkpoint=Checkpoint.from_directory(scratch),
                    checkpoint_dir_name=checkpoints.checkpoint_name(step),
                )
            except OSError as problem:
                raise CheckpointWriteError(checkpoints.write_failure(step, self._directory, problem)) from problem

    def barrier(self) -> None:
        barrier()

    def total(self, values: Tensor) -> Tensor:
        if self.world_size == 1:
            return values
        summed = values.clone()
        dist.all_reduce(summed)
        return summed

    def gather(self, value: Any) -> list[Any]:
        values = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def wrap(self, module: nn.Module) -> nn.Module:
        return DistributedDataParallel(module, broadcast_buffers=False) if self.world_size > 1 else module

    @contextmanager
    def stoppable(self) -> Iterator[None]:
        if self.rank == 0:
            self._wish.look()
        try:
            yield
        finally:
            if self.rank == 0:
                self._wish.look_away()

    def stop_wanted(self) -> bool:
        return bool(self.of_first(float(self.rank == 0 and self._wish.is_expressed())))


class StopWish:
    """The launcher's wish that the workers end, by way of files beside the checkpoints: both see those."""

    def __init__(self, directory: Path) -> None:
        self._looked_for = directory.parent / ".stop-looked-for"  # as long as a worker does
        self._wanted = directory.parent / ".stop-wanted"

    def look(self) -> None:
        self._looked_for.touch()

    def look_away(self) -> None:
        self._looked_for.unlink(missing_ok=True)

    def is_expressed(self) -> bool:
        return self._wanted.exists()

    def express(self) -> bool:
        """Whether there is a worker that looks for it; without one nothing is done."""
        if self._looked_for.exists():
            self._wanted.touch()
            return True
        return False

    def forget(self) -> None:
        """What an earlier start has left."""
        for file in (self._looked_for, self._wanted):
            file.unlink(missing_ok=True)


def run_on_ray(
    train: Callable[[TrainContext], Any],
    directory: Path,
    fleet: Fleet,
    *,
    resume: bool = True,
    interruption: Interruption | None = None,
) -> Any:
    """Runs `train` in every worker of a new group, from its last checkpoint on; returns what rank 0's call returns.

    A worker that dies takes its group with it, and the group starts again, up to `fleet.max_failures` times; an
    elastic one with as many workers as there is room for. The same call after the death of the whole job continues.

    Args:
        directory: checkpoints and Ray's own record of the run; on a cluster, storage that all nodes share.
        interruption: who hears the signals; once the steps have begun, the workers end after one and its checkpoint.

    Raises:
        WorkersFailedError: the workers failed more often than allowed; names the last failure.
        TrainingStoppedError: they have been interrupted, and a checkpoint is stored.
        KeyboardInterrupt: they have been interrupted before the steps.
    """
    directory = directory.resolve()
    if not resume:
        shutil.rmtree(directory, ignore_errors=True)
    _set_broken_record_aside(directory)

    wish = StopWish(directory)
    wish.forget()

    def worker() -> Any:
        try:
            return train(RayContext(directory))
        except TrainingStoppedError as stopped:
            return stopped  # raised here, it would be a failure that Ray makes up for

    trainer = TorchTrainer(
        worker,
        torch_config=TorchConfig(backend=fleet.backend),
        scaling_config=ScalingConfig(
            num_workers=fleet.num_workers, use_gpu=fleet.use_gpu, resources_per_worker=fleet.resources
        ),
        run_config=RunConfig(
            name=directory.name,
            storage_path=str(directory.parent),
            failure_config=FailureConfig(max_failures=fleet.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=fleet.keep),
        ),
    )
    try:
        result = _fit(trainer, interruption or Interruption(), wish).return_value
    except TrainingFailedError as problem:
        raise WorkersFailedError(_reason(problem)) from problem
    finally:
        wish.forget()
    if isinstance(result, TrainingStoppedError):
        raise result
    return result


def _fit(trainer: TorchTrainer, interruption: Interruption, wish: StopWish) -> Any:
    """`trainer.fit()` in a thread of its own: in the main one Ray takes SIGINT, and ends the workers on the spot."""
    fitted: Future[Any] = Future()

    def fit() -> None:
        try:
            fitted.set_result(trainer.fit())
        except BaseException as problem:
            fitted.set_exception(problem)

    Thread(target=fit, daemon=True).start()
    with interruption.postponed():
        expressed = False
        while not wait([fitted], timeout=POLL_SECONDS).done:
            if interruption.requested and not expressed:
                expressed = wish.express()
                if not expressed:
                    ray.shutdown()  # and the workers with it
                    raise KeyboardInterrupt
        return fitted.result()


def call_on_ray(call: Callable[[torch.device], Any], fleet: Fleet) -> Any:
    """`call(device)` in one process with the resources of a worker."""
    gpus = fleet.gpus_per_worker if fleet.use_gpu else 0
    device = torch.device("cuda" if fleet.use_gpu else "cpu")

    def body() -> Any:
        return call(device)

    return ray.get(ray.remote(num_cpus=1, num_gpus=gpus)(body).remote())


def _reason(problem: TrainingFailedError) -> str:
    """The last failure in a sentence; the traceback has the rest."""
    failures = problem.worker_failures if isinstance(problem, WorkerGroupError) else {}
    told = [f"worker {rank}: {str(failure).strip().splitlines()[-1]}" for rank, failure in sorted(failures.items())]
    return "; ".join(told) or str(problem).strip()


def connect(address: str | None, *, num_cpus: int | None = None) -> None:
    """Joins the cluster at `address` (`auto`: the one this machine is part of) or starts one here; once per process.

    `num_cpus` is the size of the one started here.
    """
    if not ray.is_initialized():
        # Ray refuses a size for a cluster that is there already.
        size = num_cpus if address is None else None
        before = signal.getsignal(signal.SIGTERM)
        ray.init(address=address, num_cpus=size, log_to_driver=True, include_dashboard=False)
        if isinstance(before, MethodType):  # an `Interruption`, in whose place Ray has put a handler of its own
            signal.signal(signal.SIGTERM, before)


def has_gpus(workers: int) -> bool:
    """Whether the cluster has a GPU for each worker."""
    return float(ray.cluster_resources().get("GPU", 0)) >= workers


def _set_broken_record_aside(directory: Path) -> None:
    # Ray writes its record in place; a kill in that moment would stop every later run.
    record = directory / SNAPSHOT
    if not record.is_file():
        return
    try:
        named = json.loads(record.read_text())
        names = [result["checkpoint_dir_name"] for result in named.get("checkpoint_results", [])]
        sound = all((directory / name).is_dir() for name in names)
    except (ValueError, KeyError, TypeError, AttributeError):
        sound = False
    if not sound:
        record.replace(record.with_suffix(".broken"))
