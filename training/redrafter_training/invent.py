# SPDX-License-Identifier: Apache-2.0
"""`python -m redrafter_training.invent --target MODEL --count N --out prompts.jsonl`: let a chat model write prompts.

The file is then `--data` for `redrafter_training.respond`. A second start with the same keys continues the file.
"""

import sys
from collections.abc import Sequence

from jsonargparse import ArgumentParser

from redrafter_training.cli import keys_parser, parse_keys
from redrafter_training.responses.config import PromptJob
from redrafter_training.utils.command import run_command

MODULE = "redrafter_training.invent"
DESCRIPTION = "Let the target, a chat model, write the prompts that its drafter is to be trained on responses to."


def build_parser() -> ArgumentParser:
    return keys_parser(PromptJob, MODULE, DESCRIPTION)


def main(argv: Sequence[str] | None = None) -> int:
    job = parse_keys(PromptJob, MODULE, DESCRIPTION, argv)
    return run_command(lambda _: _main(job), lambda: "interrupted: the same command continues behind the last batch")


def _main(job: PromptJob) -> int:
    # Imported here, since --help must not wait for torch and transformers.
    from redrafter_training.run.prompt_invention import invent

    found = invent(job)
    print(found)
    if len(found.prompts) < job.count:
        print(f"{len(found.prompts)} of {job.count} prompts: the target invents little that is new", file=sys.stderr)
    respond = f"redrafter respond --target {job.target} --data {job.out} --out DIR"
    print(f"generate responses with: {respond}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
