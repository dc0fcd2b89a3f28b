# SPDX-License-Identifier: Apache-2.0
"""Generates shards of tasks in this process, or in Ray actors with an engine each.

Ray Data has a vLLM stage (`ray.data.llm`). It is not used: it generates one response per row, while a conversation
goes through the engine turn by turn, and it does not know which rows an earlier start has finished.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from redrafter_training.responses.records import Task, TaskResult
from redrafter_training.utils.command import WorkersFailedError

GenerateResponses = Callable[[Sequence[Task]], list[TaskResult]]


@dataclass(frozen=True)
class Shard:
    """Tasks that are stored together."""

    number: int
    tasks: tuple[Task, ...]


@dataclass(frozen=True)
class Crew:
    """The Ray workers to start."""

    num_workers: int = 1
    gpus_per_worker: int = 0  # without GPUs, each has one CPU
    max_failures: int = 3


def generate_here(
    make: Callable[[], GenerateResponses], shards: Sequence[Shard]
) -> Iterator[tuple[int, list[TaskResult]]]:
    """Each shard's number and results."""
    generate = make()
    for shard in shards:
        yield shard.number, generate(shard.tasks)


class ShardWorker:
    """The class of the actors."""

    def __init__(self, make: Callable[[], GenerateResponses]) -> None:
        self._generate = make()

    def generate(self, shard: Shard) -> tuple[int, list[TaskResult]]:
        return shard.number, self._generate(shard.tasks)


def generate_on_ray(
    make: Callable[[], GenerateResponses], shards: Sequence[Shard], crew: Crew
) -> Iterator[tuple[int, list[TaskResult]]]:
    """Each shard's number and results, in the order in which they are finished. Ray must be connected.

    A worker that dies is started again, and its shard with it, up to `crew.max_failures` times each.

    Raises:
        ValueError: the cluster is too small.
        WorkersFailedError: a worker raised an error, or died too often; names the reason.
    """
    import ray
    from ray.exceptions import RayError
    from ray.util import ActorPool

    _check_resources(ray.cluster_resources(), crew)
    options = {
        "num_cpus": 1,
        "num_gpus": crew.gpus_per_worker,
        "max_restarts": crew.max_failures,
        "max_task_retries": crew.max_failures,
    }
    worker = ray.remote(ShardWorker).options(**options)
    actors = [worker.remote(make) for _ in range(min(crew.num_workers, len(shards)))]
    try:
        yield from ActorPool(actors).map_unordered(lambda actor, shard: actor.generate.remote(shard), shards)
    except RayError as problem:
        reason = (str(problem).strip() or type(problem).__name__).splitlines()[-1].strip()
        raise WorkersFailedError(f"a worker failed, the finished shards are intact: {reason}") from problem
    finally:
        for actor in actors:
            ray.kill(actor)


def _check_resources(resources: dict[str, float], crew: Crew) -> None:
    # Actors for which the cluster has no room wait without a message, and so do the shards given to them.
    for kind, each in (("CPU", 1), ("GPU", crew.gpus_per_worker)):
        if (available := resources.get(kind, 0)) < (needed := crew.num_workers * each):
            raise ValueError(f"{crew.num_workers} workers need {needed} {kind}s, and the cluster has {available:g}")
