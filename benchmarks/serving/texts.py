# SPDX-License-Identifier: Apache-2.0
"""The target's greedy continuations that acceptance is measured along, of source files or of chat prompts."""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redrafter_vllm.prompt_sets import SETS, PromptSetError, load_prompts

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from redrafter_training.target.model import TargetModel

BATCH = 8  # chat prompts that the target answers at once
SEED = 1  # of the choice of source files


@dataclass(frozen=True)
class Prompts:
    """What the target continues.

    Attributes:
        source: A number of prompts from held-out source files, or `mt-bench`, `spec-bench` or a file of their form.
        new_tokens: Maximum for each prompt.
        questions: Of each category of chat prompts; 0 takes all.
    """

    source: int | str
    new_tokens: int
    questions: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.source, int) and self.source < 1:
            raise ValueError(f"prompts must be at least 1, not {self.source}")
        if self.new_tokens < 2:
            raise ValueError(f"new_tokens must be at least 2, not {self.new_tokens}: the first comes with the prompt")
        if self.questions < 0:
            raise ValueError(f"questions must be at least 0, not {self.questions}")

    def texts(
        self, target: "TargetModel", tokenizer: "PreTrainedTokenizerBase", *, window: int
    ) -> list[tuple["Tensor", int]]:
        """The texts, token ids [n], and the lengths of their prompts; of chat prompts all turns.

        Args:
            window: Maximum tokens of a chat prompt with its answer; longer ones are left out, which stderr says.

        Raises:
            ValueError: The target has no chat template, or no chat prompt fits.
        """
        if isinstance(self.source, int):
            from redrafter_training.run.evaluation import held_out_texts

            return held_out_texts(target, tokenizer, prompts=self.source, new_tokens=self.new_tokens, seed=SEED)
        return self._answers(target, tokenizer, self.source, window)

    def _answers(
        self, target: "TargetModel", tokenizer: "PreTrainedTokenizerBase", source: str, window: int
    ) -> list[tuple["Tensor", int]]:
        from benchmarks.serving.chat.questions import chosen_prompts
        from redrafter_training.data.chat_templates import resolve_chat_template
        from redrafter_training.responses.transformers_engine import TransformersEngine
        from redrafter_training.run.prompt_evaluation import answer_prompts
        from redrafter_training.target.properties import facts_of

        window = int(min(window, facts_of("", target.model.config).longest))
        answered, left_out = answer_prompts(
            TransformersEngine(target, BATCH, quiet=False),
            tokenizer,
            resolve_chat_template(tokenizer),
            chosen_prompts(source, (), self.questions),
            new_tokens=self.new_tokens,
            window=window,
        )
        if not answered:
            raise ValueError(f"no prompt of {source} fits into {window} tokens with an answer of {self.new_tokens}")
        if left_out:
            print(f"{left_out} turns do not fit into {window} tokens with their answers: left out", file=sys.stderr)
        return [(one.text, one.start) for one in answered]

    @property
    def described(self) -> dict[str, Any]:
        """For a record."""
        chat = {} if isinstance(self.source, int) else {"questions": self.questions}
        return {"prompts": self.source, "new_tokens": self.new_tokens, **chat}

    def record_name(self, stem: str) -> str:
        """Of a record, which differs by source: `stem`, with the name of the chat prompts behind it."""
        if isinstance(self.source, int):
            return stem
        return f"{stem}-{self.source if self.source in SETS else Path(self.source).stem}"


def add_prompts(parser: argparse.ArgumentParser, *, prompts: int, new_tokens: int) -> None:
    """Options that `parsed_prompts` reads."""
    parser.add_argument(
        "--prompts",
        type=_source,
        default=prompts,
        help="a number of prompts from source files held out of all training, or chat prompts: mt-bench, spec-bench, "
        'or a file of {"turns": …} lines',
    )
    parser.add_argument("--questions", type=int, default=2, help="the first N of each category of chat prompts; 0: all")
    parser.add_argument("--new-tokens", type=int, default=new_tokens, help="tokens that each prompt is continued by")


def parsed_prompts(args: argparse.Namespace, parser: argparse.ArgumentParser) -> Prompts:
    """Exits with the parser's message where they are impossible."""
    try:
        return Prompts(args.prompts, args.new_tokens, args.questions)
    except ValueError as problem:
        parser.error(str(problem))


def _source(text: str) -> int | str:
    if text.isdecimal():
        return int(text)
    try:
        load_prompts(text)
    except PromptSetError as problem:
        raise argparse.ArgumentTypeError(str(problem)) from None
    return text
