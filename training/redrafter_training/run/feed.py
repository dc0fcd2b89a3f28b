# SPDX-License-Identifier: Apache-2.0
"""The batches of a training, what is held out of them, and where they come from."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from redrafter_training.config.recipe import DistillConfig, ResponseConfig
from redrafter_training.data.batches import (
    conversation_batches,
    divide_examples,
    first_prompt,
    held_out_prompts,
    held_out_rows,
    response_example,
    response_prompts,
)
from redrafter_training.data.prepare import load_examples
from redrafter_training.data.python_corpus import corpus_root, is_source_code, load_corpus, split, unseen_prompts
from redrafter_training.data.report import DataError
from redrafter_training.data.text_prompts import Passages, asked, distinct, text_prompts, without_special
from redrafter_training.data.tokenize import Example, ExampleEncoder
from redrafter_training.data.vocab_mapping import token_frequencies
from redrafter_training.data.windows import Repeated, Windows, encode_files, held_out_windows, mixed_batches
from redrafter_training.distributed.context import TrainContext
from redrafter_training.responses.examples import load_responses
from redrafter_training.responses.store import is_response_folder
from redrafter_training.responses.transformers_engine import write_texts
from redrafter_training.target.model import TargetModel
from redrafter_training.target.packing_probe import show_borders
from redrafter_training.target.properties import beyond_embedding

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
    keep_duplicates: bool = False
    target: Mapping[str, str] = field(default_factory=dict)  # the target's fingerprint
    computes: tuple[str, ...] = ()  # in which type, and how it is quantised
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    data_config: str | None = None
    data_split: str | None = None
    held_out_split: str | None = None
    vocab_size: int | None = None  # rows of the target's embedding, if known


def holds_conversations(data: str) -> bool:
    """Whether `data` is to be read, templated and tokenised by conversations."""
    return not is_source_code(data) and not is_response_folder(data)


def source_code_feed(
    settings: FeedSettings, target: TargetModel, tokenizer: PreTrainedTokenizerBase, context: TrainContext
) -> Feed:
    """Windows of Python sources, some of them continued by the target itself."""
    config, bos = settings.config, tokenizer.bos_token_id
    root = corpus_root(settings.data)
    sources = load_corpus(root)
    training, held_out = split(sources, keep_duplicates=settings.keep_duplicates)
    if not held_out:
        raise DataError(f"{settings.data} holds one text only: one must be held out and another one trained on")
    files = encode_files(training, tokenizer)
    for file, ids in zip(training, files, strict=True):
        if beyond := beyond_embedding(ids.tolist(), settings.vocab_size, tokenizer):
            raise DataError(f"{settings.data}: {file.path} cannot be trained with: {beyond}")
    measured_on = tokenizer([file.text for file in held_out], add_special_tokens=False, verbose=False)
    elsewhere = Passages(measured_on["input_ids"])
    answers: list[Tensor] = []
    if config.response_fraction and config.responses.folders:
        texts = folder_responses(config.responses, tokenizer, config.window, settings.target)
        answers = [text.tokens.long() for text in texts if not _continues(text, elsewhere, tokenizer)]
    elif config.response_fraction:
        front = () if bos is None else (bos,)
        count, seed = config.responses.count, config.seed
        prompts = text_prompts(files, count, tokenizer, front, config.responses, seed, elsewhere=elsewhere)
        answers = [text for text, _ in own_responses(settings, prompts, target, context)]
    if config.response_fraction and (tokens := sum(map(len, answers))) < 2 * config.window:
        raise DataError(
            f"the target's own {len(answers)} texts have {tokens} tokens, less than two windows of {config.window}: "
            "more are needed (--responses.count, or --count of redrafter_training.respond)"
        )
    measured = [
        torch.tensor(tokenizer(prompt)["input_ids"])
        for prompt in unseen_prompts(training, held_out, EVALUATION_PROMPTS, seed=1, max_chars=600)
    ]
    duplicates = len(sources) - len(training) - len(held_out)
    facts = {"files": len(files), "tokens": sum(map(len, files)), "held_out": len(held_out), "duplicates": duplicates}
    if context.rank == 0:
        print(f"{len(files):,} files to train on, {len(held_out):,} held out, {duplicates:,} copies left out")
    return Feed(
        Repeated(partial(mixed_batches, files, answers, bos, config)),
        held_out_windows(tokenizer, settings.held_out_windows, length=config.window, corpus=root),
        measured,
        partial(token_frequencies, files, answers, config.response_fraction),
        {"data": settings.data, **facts, "own_texts": len(answers), "measured_prompts": len(measured)},
    )


def conversation_feed(
    settings: FeedSettings, target: TargetModel, tokenizer: PreTrainedTokenizerBase, context: TrainContext
) -> Feed:
    """Conversations or plain texts, and the target's own answers to their first prompts or stretches of them."""
    config, quiet = settings.config, context.rank != 0
    encoder = ExampleEncoder(
        tokenizer, config.window, settings.chat_template, settings.chat_template_kwargs, settings.vocab_size
    )
    choice = {"config": settings.data_config, "split": settings.data_split}
    examples, report = load_examples(settings.examples, settings.data, encoder, **choice, quiet=quiet)
    marked = range(0)
    if settings.held_out_split is not None:
        choice["split"] = settings.held_out_split
        measured_on, _ = load_examples(None, settings.data, encoder, **choice, quiet=quiet)
        marked = range(len(examples), len(examples) + len(measured_on))
        examples = [*examples, *measured_on]
    divided = divide_examples(examples, marked=marked, keep_duplicates=settings.keep_duplicates)
    training, held_out = divided.training, divided.held_out
    if not quiet:
        print(report)
        print(divided.split)
    answers: Sequence[Example] = []
    if config.response_fraction and config.responses.folders:
        answers = folder_responses(config.responses, tokenizer, config.window, settings.target)
    elif config.response_fraction:
        prompts = response_prompts(training, held_out, tokenizer, config.window, config.responses, config.seed)
        answers = [
            response_example(text, start, tokenizer)
            for text, start in own_responses(settings, prompts, target, context)
        ]
    answers = without(answers, divided.split.keys)
    if config.response_fraction and not answers:
        raise DataError(
            "the target has no text of its own to train on: none is asked for (--responses.count), or all say what is "
            "held out"
        )
    measured = held_out_prompts(divided, EVALUATION_PROMPTS, tokenizer, config.responses)
    facts: dict[str, object] = {"data": settings.data}
    facts |= {"used": report.used, "skipped": report.skipped, "truncated": report.truncated}
    facts["opening_dropped"] = report.opening
    facts |= divided.split.facts() | {"own_texts": len(answers), "measured_prompts": len(measured)}
    return packed_feed(settings, target, context, training, answers, held_out, measured, facts)


def packed_feed(
    settings: FeedSettings,
    target: TargetModel,
    context: TrainContext,
    training: Sequence[Example],
    answers: Sequence[Example],
    held_out: Sequence[Example],
    measured: list[Tensor],
    facts: dict[str, object],
) -> Feed:
    """Batches of examples, packed where the target allows it."""
    config = settings.config
    fraction = config.response_fraction if answers else 0.0
    min_length = config.beam_length + 1
    window = packed_window(settings, target, context)
    batches = partial(
        conversation_batches,
        training,
        answers,
        batch_size=config.batch_size,
        response_fraction=fraction,
        min_length=min_length,
        seed=config.seed,
        window=window,
    )
    return Feed(
        Repeated(batches),
        held_out_rows(held_out[: settings.held_out_windows], min_length, window),
        measured,
        partial(_frequencies, training, answers, fraction),
        facts | {"packed": window is not None},
    )


def packed_window(settings: FeedSettings, target: TargetModel, context: TrainContext) -> int | None:
    """Tokens of a row to pack conversations into; None for a row each, as wanted or as the target needs it."""
    if not settings.config.packing:
        return None
    # With a cache the target reads every document alone.
    if settings.hidden_cache or context.of_first(float(show_borders(target))):
        return settings.config.window
    if context.rank == 0:
        print(f"{type(target.model).__name__} does not keep packed documents apart: each gets a row of its own")
    return None


def response_feed(
    settings: FeedSettings, target: TargetModel, tokenizer: PreTrainedTokenizerBase, context: TrainContext
) -> Feed:
    """Texts that the target has written beforehand, and nothing else."""
    config = settings.config
    texts = load_responses(
        Path(settings.data),
        tokenizer,
        config.window,
        config.responses.longest_repeat,
        target=settings.target,
        any_target=config.responses.any_target,
        keep_duplicates=settings.keep_duplicates,
    )
    if context.rank == 0:
        print(texts.split)
    measured = distinct(map(first_prompt, texts.prompts))[:EVALUATION_PROMPTS]
    facts = {"data": settings.data, **texts.facts, "measured_prompts": len(measured)}
    return packed_feed(settings, target, context, texts.training, [], texts.held_out, measured, facts)


def folder_responses(
    config: ResponseConfig, tokenizer: PreTrainedTokenizerBase, window: int, target: Mapping[str, str] | None = None
) -> list[Example]:
    """The texts for training of all folders of responses, each of at most `window` tokens.

    Raises:
        DataError: a folder is none of `redrafter_training.respond`'s, or see `load_responses`.
    """
    texts: list[Example] = []
    for folder in config.folders:
        if not is_response_folder(folder):
            raise DataError(
                f"{folder}: no folder of answers; python -m redrafter_training.respond --out {folder} makes one"
            )
        loaded = load_responses(
            Path(folder), tokenizer, window, config.longest_repeat, target=target, any_target=config.any_target
        )
        texts += loaded.training
    return texts


def without(texts: Sequence[Example], keys: Set[int]) -> list[Example]:
    """The texts up to the first turn that is one of `keys`."""
    cut = [text.up_to(kept) for text in texts if text.content is None or (kept := text.content.before(keys))]
    return [text for text in cut if text is not None]


def _continues(text: Example, held_out: Passages, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether what the target was asked to go on from stands in a held-out text."""
    return without_special(first_prompt(text), set(tokenizer.all_special_ids)) in held_out


def _frequencies(
    training: Sequence[Example], answers: Sequence[Example], response_fraction: float, vocab_size: int
) -> Tensor:
    """Of the tokens that are to be learned."""
    learned, written = ([text.tokens[text.loss].long() for text in source] for source in (training, answers))
    return token_frequencies(learned, written, response_fraction, vocab_size)


def own_responses(
    settings: FeedSettings, prompts: Sequence[Tensor], target: TargetModel, context: TrainContext
) -> list[tuple[Tensor, int]]:
    """The target's texts after `prompts` and the prompts' lengths, written by rank 0 now or at an earlier start.

    They are found again by all that they depend on: the target's content and how it computes, the prompts, the
    settings.
    """
    config = settings.config
    wanted = asked(prompts, config.responses)
    digest = hashlib.sha256()
    for prompt, temperature in wanted:
        digest.update(f"{temperature} {prompt.tolist()}\n".encode())
    made_from = [settings.target, settings.computes, asdict(config.responses), config.window, config.seed]
    name = hashlib.sha256(json.dumps([*made_from, digest.hexdigest()]).encode()).hexdigest()[:12]
    path = settings.folder / f"responses-{name}.pt"
    if context.rank == 0 and not path.is_file():
        made = write_texts(target, wanted, config.window, config.responses, config.seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial_file = path.with_suffix(".writing")
        try:
            torch.save(made, partial_file)
            os.replace(partial_file, path)
        finally:
            partial_file.unlink(missing_ok=True)
    context.barrier()
    texts: list[tuple[Tensor, int]] = torch.load(path, weights_only=True)
    if context.rank == 0:
        print(f"{len(texts):,} different texts by the target after {len(prompts):,} different prompts")
    return texts


def open_feed(
    settings: FeedSettings, target: TargetModel, tokenizer: PreTrainedTokenizerBase, context: TrainContext
) -> Feed:
    """The data that `settings.data` names.

    Raises:
        DataError: it names nothing that can be read or used.
    """
    if not holds_conversations(settings.data) and any(
        (settings.data_config, settings.data_split, settings.held_out_split)
    ):
        raise DataError(f"{settings.data} has no splits: leave --data-config, --data-split and --held-out-split away")
    if is_response_folder(settings.data):
        return response_feed(settings, target, tokenizer, context)
    if holds_conversations(settings.data):
        return conversation_feed(settings, target, tokenizer, context)
    return source_code_feed(settings, target, tokenizer, context)
