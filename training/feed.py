# SPDX-License-Identifier: Apache-2.0
"""The batches of a training, what is held out of them, and where they come from."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from training.config import DistillConfig
from training.context import TrainContext
from training.conversation_feed import (
    answer_example,
    collate,
    conversation_batches,
    first_prompt,
    hold_out,
    write_answers,
)
from training.conversations import load_conversations
from training.corpus import extract_prompts, load_corpus, split
from training.data import Repeated, Windows, encode_files, mixed_batches, text_batches
from training.draft_vocabulary import token_frequencies
from training.evaluate import held_out_windows
from training.examples import Example, ExampleEncoder, encode_all
from training.frozen_target import FrozenTarget
from training.generate import make_responses

STDLIB = "stdlib"
EVALUATION_PROMPTS = 32


@dataclass(frozen=True)
class Feed:
    """Data of one training."""

    batches: Iterable[Windows]  # of the whole job, endless, the same in every process and run, and each time again
    held_out: Windows
    prompts: list[Tensor]  # held out too; the target continues them when tokens per step are measured
    frequencies: Callable[[int], Tensor]  # of the tokens 0..V-1 in training, [V], for a vocabulary size V
    facts: dict[str, object]  # for the record: where from, how much


@dataclass(frozen=True)
class FeedSettings:
    """What a feed is made from."""

    data: str
    chat_template: str | None
    config: DistillConfig
    folder: Path  # for what is made once per run
    held_out_windows: int


def is_source_code(data: str) -> bool:
    """Whether `data` names Python sources: the standard library, or a folder with some."""
    folder = Path(data)
    return data == STDLIB or (folder.is_dir() and next(folder.rglob("*.py"), None) is not None)


def source_code_feed(
    settings: FeedSettings, target: FrozenTarget, tokenizer: PreTrainedTokenizerBase, context: TrainContext
) -> Feed:
    """Windows of Python sources, some of them continued by the target itself."""
    config, bos = settings.config, tokenizer.bos_token_id
    root = None if settings.data == STDLIB else Path(settings.data)
    training, held_out = split(load_corpus(root))
    files = encode_files(training, tokenizer)
    responses = None
    if config.response_fraction:

        def write() -> dict[str, Tensor]:
            return asdict(make_responses(target, files, config.window, bos, config.responses, config.seed))

        responses = Windows(**_once_per_run(settings, len(files), write, context))
    rows = config.batch_size - round(config.batch_size * config.response_fraction)

    def batches() -> Iterator[Windows]:
        text = text_batches(files, config.window, bos, max(rows, 1), config.seed, fixed=config.fixed_windows)
        return mixed_batches(text, responses, config.batch_size, config.response_fraction, config.seed)

    prompts = extract_prompts(held_out, EVALUATION_PROMPTS, seed=1, max_chars=600)
    return Feed(
        Repeated(batches),
        held_out_windows(tokenizer, settings.held_out_windows, length=config.window, corpus=root),
        [torch.tensor(tokenizer(prompt)["input_ids"]) for prompt in prompts],
        partial(token_frequencies, files, responses, config.response_fraction),
        {"data": settings.data, "files": len(files), "tokens": sum(map(len, files))},
    )


def conversation_feed(
    settings: FeedSettings, target: FrozenTarget, tokenizer: PreTrainedTokenizerBase, context: TrainContext
) -> Feed:
    """Conversations, and the target's own answers to their first prompts."""
    config, quiet = settings.config, context.rank != 0
    conversations, report = load_conversations([settings.data])
    encoder = ExampleEncoder(tokenizer, config.window, settings.chat_template)
    examples = encode_all(conversations, encoder, report, quiet=quiet)
    if not quiet:
        print(report)
    training, held_out = hold_out(examples)
    answers: list[Example] = []
    if config.response_fraction:

        def write() -> list[tuple[Tensor, int]]:
            return write_answers(target, training, config.window, config.responses, config.seed)

        answers = [answer_example(*text) for text in _once_per_run(settings, len(training), write, context)]
    least = config.beam_length + 1
    batches = partial(
        conversation_batches,
        training,
        answers,
        batch_size=config.batch_size,
        answer_fraction=config.response_fraction,
        least=least,
        seed=config.seed,
    )
    return Feed(
        Repeated(batches),
        collate(held_out[: settings.held_out_windows], least),
        [prompt for prompt in map(first_prompt, held_out) if len(prompt)][:EVALUATION_PROMPTS],
        partial(_frequencies, training, answers, config.response_fraction),
        {
            "data": settings.data,
            "used": report.used,
            "skipped": report.skipped,
            "truncated": report.truncated,
            "training": len(training),
            "held_out": len(held_out),
        },
    )


def _frequencies(
    training: Sequence[Example], answers: Sequence[Example], response_fraction: float, vocab_size: int
) -> Tensor:
    """Of the tokens that are to be learned."""
    learned = [example.tokens[example.loss].long() for example in training]
    written = torch.cat([example.tokens[example.loss].long() for example in answers]) if answers else None
    responses = None if written is None else Windows.full(written[None])
    return token_frequencies(learned, responses, response_fraction, vocab_size)


def _once_per_run(settings: FeedSettings, size: int, make: Callable[[], Any], context: TrainContext) -> Any:
    """What rank 0 makes, or made at an earlier start of the same run, in all processes."""
    config = settings.config
    asked = [asdict(config.responses), config.window, config.seed, settings.data, settings.chat_template, size]
    name = hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:12]
    path = settings.folder / f"responses-{name}.pt"
    if context.rank == 0 and not path.is_file():
        made = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        partial_file = path.with_suffix(".writing")
        torch.save(made, partial_file)
        os.replace(partial_file, path)
    context.barrier()
    return torch.load(path, weights_only=True)


def open_feed(
    settings: FeedSettings, target: FrozenTarget, tokenizer: PreTrainedTokenizerBase, context: TrainContext
) -> Feed:
    """The data that `settings.data` names.

    Raises:
        DataError: it names nothing that can be read or used.
    """
    if is_source_code(settings.data):
        return source_code_feed(settings, target, tokenizer, context)
    return conversation_feed(settings, target, tokenizer, context)
