# SPDX-License-Identifier: Apache-2.0
"""Training steps per second with one Ray worker and with several.

`python -m benchmarks.training.ray_workers --target DIR`. The batches do not depend on the number of workers, which
divide the rows among them. Each worker computes with one thread. Rounds alternate between the fleets; each round is a
separate Ray Train run, whose first steps do not count.
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks import cli
from benchmarks.assets import load_target
from benchmarks.record import RESULTS
from redrafter_training.config.recipe import RECIPES, Budget
from redrafter_training.data.windows import Windows
from redrafter_training.distributed.context import TrainContext
from redrafter_training.trainer.loop import build_drafter, distill

MODULE = "benchmarks.training.ray_workers"


@dataclass(frozen=True)
class Options:
    """Options of the measurement."""

    target: Path
    workers: int = 2
    batch_size: int = 8
    warm_up: int = 5
    steps: int = 30
    rounds: int = 3
    out: Path = RESULTS


def stamped_batches(vocab_size: int, options: Options, window: int, stamps: list[float]) -> Iterator[Windows]:
    """Random rows, the same in every process; appends the time of each request for a batch to `stamps`."""
    generator = torch.Generator().manual_seed(0)
    while True:
        stamps.append(time.perf_counter())
        yield Windows.full(torch.randint(vocab_size, (options.batch_size, window), generator=generator))


def train(options: Options, context: TrainContext) -> list[float]:
    """Train in one worker; the seconds of each step after the warm-up."""
    torch.set_num_threads(1)
    target = load_target(options.target)
    recipe = replace(
        RECIPES["standard"], budget=Budget(options.warm_up + options.steps + 1), batch_size=options.batch_size
    )
    stamps: list[float] = []
    batches = stamped_batches(target.vocab_size, options, recipe.window, stamps)
    distill(build_drafter(target, recipe), target, batches, recipe, context=context, quiet=True)
    return [after - before for before, after in pairwise(stamps)][options.warm_up :]


def run(options: Options) -> dict[str, Any]:
    """Median seconds per step by round and number of workers, and the ratio of the medians over all rounds."""
    import ray

    from redrafter_training.distributed.ray_train import Fleet, run_on_ray

    environment = {"env_vars": {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}}
    ray.init("local", num_cpus=options.workers, include_dashboard=False, log_to_driver=False, runtime_env=environment)
    medians: dict[int, list[float]] = {1: [], options.workers: []}
    with tempfile.TemporaryDirectory(prefix="redrafter-") as scratch:
        for number in range(options.rounds):
            for workers, found in medians.items():
                folder = Path(scratch) / f"{number}-{workers}"
                absolute = replace(options, target=options.target.resolve())
                seconds = run_on_ray(partial(train, absolute), folder, Fleet(num_workers=workers, max_failures=0))
                found.append(statistics.median(seconds))
    ray.shutdown()
    overall = {workers: statistics.median(found) for workers, found in medians.items()}
    return {
        "seconds_per_step": {str(workers): found for workers, found in medians.items()},
        "median": {str(workers): value for workers, value in overall.items()},
        "speedup": overall[1] / overall[options.workers],
    }


def parse_args(argv: Sequence[str]) -> Options:
    parser = cli.make_parser(MODULE, "Training steps per second with one Ray worker and with several.")
    cli.add_target(parser)
    parser.add_argument("--workers", type=int, default=2, help="number of workers to compare with one")
    parser.add_argument("--batch-size", type=int, default=8, help="rows per step, over all workers together")
    parser.add_argument("--warm-up", type=int, default=5, help="steps of each run that do not count")
    parser.add_argument("--steps", type=int, default=30, help="steps of each run that count")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each fleet")
    cli.add_out(parser)
    options = Options(**vars(parser.parse_args(argv)))
    if options.workers < 2 or min(options.warm_up, options.steps, options.rounds) < 1:
        parser.error("needs at least 2 workers and 1 warm-up step, step and round")
    return options


def measure(options: Options, console: Console) -> cli.Report:
    return {"options": {key: str(value) for key, value in asdict(options).items() if key != "out"}, **run(options)}


def show(report: cli.Report, console: Console) -> None:
    options = report["options"]
    for workers, seconds in report["median"].items():
        console.print(f"{workers} worker(s): {seconds:.3f} s per step of {options['batch_size']} rows")
    console.print(f"{options['workers']} workers are {report['speedup']:.2f} times as fast as one")


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run_benchmark(MODULE, argv, parse_args, measure, show)


if __name__ == "__main__":
    sys.exit(main())
