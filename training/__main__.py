# SPDX-License-Identifier: Apache-2.0
"""`python -m training --target MODEL --data DATA`: train a drafter and put it where serving finds it."""

import sys
from collections.abc import Sequence

import torch
from rich.console import Console

from redrafter_vllm.checkpoint import CheckpointError
from training.checkpoints import CheckpointWriteError
from training.cli import parse
from training.context import WorkersFailedError
from training.data_plan import describe_data
from training.data_report import DataError
from training.plan import make_plan, print_plan
from training.runner import run
from training.summary import print_summary


def main(argv: Sequence[str] | None = None, *, program: str = "training") -> int:
    job, config, recipe, keys = parse(argv)
    console = Console()
    device = torch.device("cuda" if job.device != "cpu" and torch.cuda.is_available() else "cpu")
    if job.dry_run:
        try:
            texts = describe_data(job, config)
            print_plan(job, config, recipe, make_plan(job, config, device), texts, console)
        except DataError as problem:
            print(problem, file=sys.stderr)
            return 1
        return 0
    job.run_folder.mkdir(parents=True, exist_ok=True)
    (job.run_folder / "config.yaml").write_text(keys)
    try:
        report = run(job, config, recipe, program=program)
    except (CheckpointError, CheckpointWriteError, FloatingPointError, ValueError, WorkersFailedError) as problem:
        print(problem, file=sys.stderr)
        return 1
    print_summary(job, report, console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
