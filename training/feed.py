# SPDX-License-Identifier: Apache-2.0
"""The batches of a training, what is held out of them, and where they come from."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from training.answer_store import is_regenerated
from training.borders import show_borders
from training.config import DistillConfig, ResponseConfig
from training.context import TrainContext
from training.conversation_feed import (
    answer_example,
    conversation_batches,
    first_prompt,
    held_out_rows,
    hold_out,
    write_answers,
)
from training.corpus import corpus_root, extract_prompts, is_source_code, load_corpus, split
from training.data import Repeated, Windows, encode_files, mixed_batches
from training.data_report import DataError
from training.draft_vocabulary import token_frequencies
from training.evaluate import held_out_windows
from training.examples import Example
from training.frozen_target import FrozenTarget
from training.generate import make_responses
from training.prepared import load_examples
from training.regenerated import load_regenerated

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
    examples: Path | None = None  # where prepared conversations are, if they are
    hidden_cache: bool = False  # the target's hidden states come from the disk


def holds_conversations(data: str) -> bool:
    """Whether `data` is to be read, templated and tokenised by conversations."""
    return not is_source_code(data) and not is_regenerated(data)


def source_code_feed(
    settings: FeedSettings, target: FrozenTarget, tokenizer: PreTrainedTokenizerBase, context: TrainContext
) -> Feed:
    """Windows of Python sources, some of them continued by the target itself."""
    config, bos = settings.config, tokenizer.bos_token_id
    root = corpus_root(settings.data)
    training, held_out = split(load_corpus(root))
    files = encode_files(training, tokenizer)
    answers: list[Tensor] = []
    if config.response_fraction and config.responses.folders:
        answers = [text.tokens.long() for text in written_before(config.responses, tokenizer, config.window)]
    elif config.response_fraction:

        def write() -> list[Tensor]:
            return make_responses(target, files, config.window, bos, config.responses, config.seed)

        answers = _once_per_run(settings, len(files), write, context)
    if config.response_fraction and (tokens := sum(map(len, answers))) < 2 * config.window:
        raise DataError(
            f"the target's own {len(answers)} texts have {tokens} tokens, less than two windows of {config.window}: "
            "more are needed (--responses.count, or --count of training.regenerate)"
        )
    prompts = extract_prompts(held_out, EVALUATION_PROMPTS, seed=1, max_chars=600)
    return Feed(
        Repeated(partial(mixed_batches, files, answers, bos, config)),
        held_out_windows(tokenizer, settings.held_out_windows, length=config.window, corpus=root),
        [torch.tensor(tokenizer(prompt)["input_ids"]) for prompt in prompts],
        partial(token_frequencies, files, answers, config.response_fraction),
        {"data": settings.data, "files": len(files), "tokens": sum(map(len, files))},
    )


def conversation_feed(
    settings: FeedSettings, target: FrozenTarget, tokenizer: PreTrainedTokenizerBase, context: TrainContext
) -> Feed:
    """Conversations, and the target's own answers to their first prompts."""
    config, quiet = settings.config, context.rank != 0
    examples, report = load_examples(
        settings.examples, settings.data, tokenizer, config.window, settings.chat_template, quiet=quiet
    )
    if not quiet:
        print(report)
    training, held_out = hold_out(examples)
    answers: Sequence[Example] = []
    if config.response_fraction and config.responses.folders:
        answers = written_before(config.responses, tokenizer, config.window)
    elif config.response_fraction:

        def write() -> list[tuple[Tensor, int]]:
            return write_answers(target, training, config.window, config.responses, config.seed)

        answers = [answer_example(*text) for text in _once_per_run(settings, len(training), write, context)]
    least = config.beam_length + 1
    window = packed_window(settings, target, context)
    batches = partial(
        conversation_batches,
        training,
        answers,
        batch_size=config.batch_size,
        answer_fraction=config.response_fraction,
        least=least,
        seed=config.seed,
        window=window,
    )
    return Feed(
        Repeated(batches),
        held_out_rows(held_out[: settings.held_out_windows], least, window),
        [prompt for prompt in map(first_prompt, held_out) if len(prompt)][:EVALUATION_PROMPTS],
        partial(_frequencies, training, answers, config.response_fraction),
        {
            "data": settings.data,
            "used": report.used,
            "skipped": report.skipped,
            "truncated": report.truncated,
            "training": len(training),
            "held_out": len(held_out),
            "packed": window is not None,
        },
    )


def packed_window(settings: FeedSettings, target: FrozenTarget, context: TrainContext) -> int | None:
    """Tokens of a row to pack conversations into; None for a row each, as wanted or as the target needs it."""
    if not settings.config.packing:
        return None
    # With a cache the target reads every document alone.
    if settings.hidden_cache or context.of_first(float(show_borders(target))):
        return settings.config.window
    if context.rank == 0:
        print(f"{type(target.model).__name__} does not keep packed documents apart: each gets a row of its own")
    return None


def regenerated_feed(
    settings: FeedSettings, target: FrozenTarget, tokenizer: PreTrainedTokenizerBase, context: TrainContext
) -> Feed:
    """Texts that the target has written beforehand, and nothing else."""
    config = settings.config
    texts = load_regenerated(Path(settings.data), tokenizer, config.window, config.responses.longest_repeat)
    least = config.beam_length + 1
    window = packed_window(settings, target, context)
    batches = partial(
        conversation_batches,
        texts.training,
        [],
        batch_size=config.batch_size,
        answer_fraction=0,
        least=least,
        seed=config.seed,
        window=window,
    )
    return Feed(
        Repeated(batches),
        held_out_rows(texts.held_out[: settings.held_out_windows], least, window),
        [first_prompt(example) for example in texts.held_out][:EVALUATION_PROMPTS],
        partial(_frequencies, texts.training, [], 0.0),
        {"data": settings.data, **texts.facts, "packed": window is not None},
    )


def written_before(config: ResponseConfig, tokenizer: PreTrainedTokenizerBase, window: int) -> list[Example]:
    """The texts for training of all folders of responses, each of at most `window` tokens.

    Raises:
        DataError: a folder is none of `training.regenerate`'s, or see `load_regenerated`.
    """
    texts: list[Example] = []
    for folder in config.folders:
        if not is_regenerated(folder):
            raise DataError(f"{folder}: no folder of answers; python -m training.regenerate --out {folder} makes one")
        texts += load_regenerated(Path(folder), tokenizer, window, config.longest_repeat).training
    return texts


def _frequencies(
    training: Sequence[Example], answers: Sequence[Example], response_fraction: float, vocab_size: int
) -> Tensor:
    """Of the tokens that are to be learned."""
    learned, written = ([text.tokens[text.loss].long() for text in source] for source in (training, answers))
    return token_frequencies(learned, written, response_fraction, vocab_size)


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
        try:
            torch.save(made, partial_file)
            os.replace(partial_file, path)
        finally:
            partial_file.unlink(missing_ok=True)
    context.barrier()
    return torch.load(path, weights_only=True)


def open_feed(
    settings: FeedSettings, target: FrozenTarget, tokenizer: PreTrainedTokenizerBase, context: TrainContext
) -> Feed:
    """The data that `settings.data` names.

    Raises:
        DataError: it names nothing that can be read or used.
    """
    if is_regenerated(settings.data):
        return regenerated_feed(settings, target, tokenizer, context)
    if holds_conversations(settings.data):
        return conversation_feed(settings, target, tokenizer, context)
    return source_code_feed(settings, target, tokenizer, context)
