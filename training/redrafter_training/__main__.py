# SPDX-License-Identifier: Apache-2.0
"""`python -m redrafter_training --target MODEL --data DATA`: train a drafter and put it where serving finds it."""

import sys
from collections.abc import Sequence
from functools import partial

from jsonargparse import ArgumentParser

from redrafter_training import cli
from redrafter_training.config.job import Job
from redrafter_training.config.recipe import DistillConfig
from redrafter_training.utils.command import Interruption, run_command


def build_parser() -> ArgumentParser:
    return cli.build_parser()


def main(argv: Sequence[str] | None = None) -> int:
    job, config, recipe, keys = cli.parse(argv)
    return run_command(partial(_main, job, config, recipe, keys), partial(_interrupted, job))


def _main(job: Job, config: DistillConfig, recipe: str, keys: str, interruption: Interruption) -> int:
    # Imported here, since --help must not wait for transformers.
    from rich.console import Console

    from redrafter_training.run.data_summary import describe_data
    from redrafter_training.run.epochs import planned
    from redrafter_training.run.plan import make_plan, print_plan
    from redrafter_training.run.summary import print_summary
    from redrafter_training.run.training import check_start, local_device, run

    console = Console()
    if job.dry_run:
        check_start(job, config)
        texts = describe_data(job, config)
        counted, epochs = planned(job, config)
        print_plan(job, counted, recipe, make_plan(job, counted, local_device(job)), texts, console, epochs)
        return 0
    report = run(job, config, recipe, keys, interruption)
    print_summary(job, report.content, console)
    if report.address is not None:
        print(f"uploaded: {report.address}")
    if report.unmeasured is not None:
        print(
            f"the drafter in {job.out_dir} is complete, but its tokens per step could not be measured "
            f"({report.unmeasured}): run redrafter evaluate, or train with --evaluate false",
            file=sys.stderr,
        )
    if report.not_pushed is not None:
        print(
            f"the drafter in {job.out_dir} is complete, but could not be uploaded ({report.not_pushed}): "
            f"hf upload {job.push_to_hub} {job.out_dir}",
            file=sys.stderr,
        )
    return int(report.unmeasured is not None or report.not_pushed is not None)


def _interrupted(job: Job) -> str:
    from redrafter_training.distributed import checkpoints

    newest = checkpoints.latest(job.checkpoints)
    if newest is None:
        return "interrupted before the first checkpoint: the same command starts again"
    return f"interrupted: the same command continues from the last checkpoint, {newest}"


if __name__ == "__main__":
    sys.exit(main())
