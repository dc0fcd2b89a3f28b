# SPDX-License-Identifier: Apache-2.0
"""The subcommands of `redrafter`, each a module of its own with `main(argv)` and `build_parser()`."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

TRAINING = "redrafter_training"


@dataclass(frozen=True)
class Command:
    """A subcommand."""

    name: str
    module: str
    summary: str  # one line of help

    @property
    def is_installed(self) -> bool:
        """Whether the distribution that has it is installed; imports nothing."""
        return find_spec(self.module.partition(".")[0]) is not None

    def load(self) -> Any:
        """Its module."""
        return import_module(self.module)


GROUPS: dict[str, Sequence[Command]] = {
    "Training (the package redrafter-training)": (
        Command("pipeline", f"{TRAINING}.pipeline", "prompts, responses, training and evaluation by one file"),
        Command("invent", f"{TRAINING}.invent", "let a chat model write prompts"),
        Command("respond", f"{TRAINING}.respond", "let the target answer prompts, as data to train on"),
        Command("train", f"{TRAINING}.__main__", "train a drafter and put it where serving finds it"),
        Command("evaluate", f"{TRAINING}.evaluate", "tokens per step of a drafter, without a serving engine"),
        Command("trim", f"{TRAINING}.trim", "reduce a drafter's vocabulary to the most frequent tokens"),
        Command("fetch-smollm2", f"{TRAINING}.smollm2", "download SmolLM2-135M-Instruct, a small chat model"),
    ),
    "Trying it": (
        Command("watch", "redrafter_vllm.cli.watch", "plain decoding beside ReDrafter, with the draft trees"),
        Command("chat", "redrafter_vllm.cli.chat", "talk to a model, accepted drafts in colour"),
        Command("bench", "redrafter_vllm.cli.bench", "how fast a model is with ReDrafter on this machine, and why"),
        Command("predict", "redrafter_vllm.cli.predict", "how fast it would be on a GPU, by a cost model"),
    ),
    "Drafters": (
        Command("inspect", "redrafter_vllm.cli.inspect", "what a drafter is, and the trees that it draws for a prompt"),
        Command("convert", "redrafter_vllm.checkpoint.convert", "write a checkpoint of any layout in Apple's"),
    ),
    "This machine": (
        Command("doctor", "redrafter_vllm.cli.doctor", "what is installed, what is missing, how to mend it"),
        Command("completion", "redrafter_vllm.cli.completion", "completion of these commands in a shell"),
    ),
}

COMMANDS = {command.name: command for group in GROUPS.values() for command in group}
