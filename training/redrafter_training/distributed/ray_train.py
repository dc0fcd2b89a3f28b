# SPDX-License-Identifier: Apache-2.0
"""Ray Train workers as the processes of the training loop.

Only this module, `data.ray_ingest` and `responses.ray_workers` import Ray.
"""

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
    """Number and resources of the workers, and how often they may fail."""

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
        """Resources of each worker; None means Ray's default."""
        return {"GPU": self.gpus_per_worker} if self.use_gpu and self.gpus_per_worker > 1 else None


class RayContext(TrainContext):
    """One worker of a Ray Train group.

    Ray stores what rank 0 reports and records the newest checkpoint. If a kill while writing destroys the record, the
    newest complete checkpoint in the run's directory is used.
    """

    def __init__(self, directory: Path) -> None:
        around = ray.train.get_context()
        self.rank = around.get_world_rank()
        self.world_size = around.get_world_size()
        self.device = get_device()
        self.devices = get_devices()
        self._directory = directory
        self._stop = StopRequest(directory)

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
            self._stop.listen()
        try:
            yield
        finally:
            if self.rank == 0:
                self._stop.stop_listening()

    def stop_wanted(self) -> bool:
        return bool(self.of_first(float(self.rank == 0 and self._stop.is_requested())))


class StopRequest:
    """The launcher's request to the workers to stop, as files beside the checkpoints, which both can access."""

    def __init__(self, directory: Path) -> None:
        self._listening = directory.parent / ".stop-looked-for"  # exists while a worker checks for a request
        self._requested = directory.parent / ".stop-wanted"

    def listen(self) -> None:
        self._listening.touch()

    def stop_listening(self) -> None:
        self._listening.unlink(missing_ok=True)

    def is_requested(self) -> bool:
        return self._requested.exists()

    def request(self) -> bool:
        """Requests the stop if a worker checks for it; returns whether one does."""
        if self._listening.exists():
            self._requested.touch()
            return True
        return False

    def clear(self) -> None:
        """Deletes the files, which an earlier start may have left."""
        for file in (self._listening, self._requested):
            file.unlink(missing_ok=True)


def run_on_ray(
    train: Callable[[TrainContext], Any],
    directory: Path,
    fleet: Fleet,
    *,
    resume: bool = True,
    interruption: Interruption | None = None,
) -> Any:
    """Runs `train` in every worker of a new group, from its last checkpoint; returns the result of rank 0.

    When a worker dies, its group ends and starts again, up to `fleet.max_failures` times; an elastic group with as many
    workers as the cluster has resources for. The same call continues a job that was killed.

    Args:
        directory: folder for checkpoints and Ray's record of the run; on a cluster, storage that all nodes share.
        interruption: receives the signals; once steps have begun, the workers finish one and store a checkpoint.

    Raises:
        WorkersFailedError: the workers failed more often than allowed; names the last failure.
        TrainingStoppedError: they were interrupted, and a checkpoint is stored.
        KeyboardInterrupt: they were interrupted before the first step.
    """
    directory = directory.resolve()
    if not resume:
        shutil.rmtree(directory, ignore_errors=True)
    _set_broken_record_aside(directory)

    stop = StopRequest(directory)
    stop.clear()

    def worker() -> Any:
        try:
            return train(RayContext(directory))
        except TrainingStoppedError as stopped:
            return stopped  # if it were raised, Ray would restart the workers

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
        result = _fit(trainer, interruption or Interruption(), stop).return_value
    except TrainingFailedError as problem:
        raise WorkersFailedError(_reason(problem)) from problem
    finally:
        stop.clear()
    if isinstance(result, TrainingStoppedError):
        raise result
    return result


def _fit(trainer: TorchTrainer, interruption: Interruption, stop: StopRequest) -> Any:
    """`trainer.fit()` in another thread; in the main thread Ray handles SIGINT and ends the workers immediately."""
    fitted: Future[Any] = Future()

    def fit() -> None:
        try:
            fitted.set_result(trainer.fit())
        except BaseException as problem:
            fitted.set_exception(problem)

    Thread(target=fit, daemon=True).start()
    with interruption.postponed():
        requested = False
        while not wait([fitted], timeout=POLL_SECONDS).done:
            if interruption.requested and not requested:
                requested = stop.request()
                if not requested:
                    ray.shutdown()  # ends the workers too
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
    """The last failure in one line; the traceback has the rest."""
    failures = problem.worker_failures if isinstance(problem, WorkerGroupError) else {}
    failed = [f"worker {rank}: {str(failure).strip().splitlines()[-1]}" for rank, failure in sorted(failures.items())]
    return "; ".join(failed) or str(problem).strip()


def connect(address: str | None, *, num_cpus: int | None = None) -> None:
    """Joins the cluster at `address` (`auto`: the one this machine is part of) or starts a local one; once per process.

    `num_cpus` is the size of a local cluster.
    """
    if not ray.is_initialized():
        # Ray refuses a size for an existing cluster.
        size = num_cpus if address is None else None
        before = signal.getsignal(signal.SIGTERM)
        # Without an address Ray would join any cluster that runs on this machine.
        ray.init(address=address or "local", num_cpus=size, log_to_driver=True, include_dashboard=False)
        if isinstance(before, MethodType):  # that of an `Interruption`, which Ray has replaced
            signal.signal(signal.SIGTERM, before)


def has_gpus(workers: int) -> bool:
    """Whether the cluster has a GPU for each worker."""
    return float(ray.cluster_resources().get("GPU", 0)) >= workers


def _set_broken_record_aside(directory: Path) -> None:
    # Ray does not write its record atomically; after a kill while writing, every later run would fail.
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
