# SPDX-License-Identifier: Apache-2.0
"""`python -m redrafter_training.respond --target MODEL --data DATA --out DIR`: responses of the target, to train on.

A drafter has to predict the target's text, not a data set's. The folder is then the training's `--data`.
"""

import sys
from collections.abc import Sequence

from jsonargparse import ArgumentParser

from redrafter_training.cli import keys_parser, parse_keys
from redrafter_training.responses.config import ResponseJob
from redrafter_training.utils.command import run_command

MODULE = "redrafter_training.respond"
DESCRIPTION = "Generate the target's responses to the prompts of some data, as training data for its drafter."


def build_parser() -> ArgumentParser:
    return keys_parser(ResponseJob, MODULE, DESCRIPTION)


def main(argv: Sequence[str] | None = None) -> int:
    job = parse_keys(ResponseJob, MODULE, DESCRIPTION, argv)
    return run_command(lambda _: _main(job), lambda: _interrupted(job))


def _main(job: ResponseJob) -> int:
    # Imported here, since --help must not wait for torch and transformers.
    from redrafter_training.run.response_generation import generate_responses

    print(generate_responses(job))
    print(f"train on them with: redrafter train --target {job.target} --data {job.out} --window {job.window}")
    return 0


def _interrupted(job: ResponseJob) -> str:
    finished = len(list(job.out.glob("shard-*.jsonl")))
    return f"interrupted: {finished} finished shards are in {job.out}, and the same command generates the others"


if __name__ == "__main__":
    sys.exit(main())
