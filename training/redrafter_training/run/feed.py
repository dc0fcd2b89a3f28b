# SPDX-License-Identifier: Apache-2.0
"""The data of a training: batches, held-out rows and prompts, from source code, conversations or responses."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from redrafter_training.data.batches import conversation_batches, held_out_rows, pass_steps
from redrafter_training.data.division import (
    Divided,
    divide_examples,
    first_prompt,
    held_out_prompts,
    response_example,
    response_prompts,
    texts_before,
)
from redrafter_training.data.prepare import load_examples
from redrafter_training.data.python_corpus import (
    SourceFile,
    corpus_root,
    is_source_code,
    load_corpus,
    split,
    unseen_prompts,
)
from redrafter_training.data.report import DataError, DataReport
from redrafter_training.data.text_prompts import Passages, distinct, text_prompts, without_special
from redrafter_training.data.tokenize import Example, ExampleEncoder
from redrafter_training.data.vocab_mapping import example_frequencies, token_frequencies
from redrafter_training.data.windows import Repeated, Windows, encode_files, held_out_windows, mixed_batches, text_steps
from redrafter_training.distributed.context import TrainContext
from redrafter_training.responses.examples import folder_responses, load_responses
from redrafter_training.responses.own_texts import own_responses
from redrafter_training.responses.store import is_response_folder
from redrafter_training.run.feed_settings import FeedSettings
from redrafter_training.target.model import TargetModel
from redrafter_training.target.packing_probe import show_borders
from redrafter_training.target.properties import beyond_embedding

EVALUATION_PROMPTS = 32


@dataclass(frozen=True)
class Feed:
    """The data of one training."""

    batches: Iterable[Windows]  # of all workers together, endless; the same in every process and iteration
    held_out: Windows
    prompts: list[Tensor]  # held out; the target continues them when tokens per step are measured
    frequencies: Callable[[int], Tensor]  # [V] of the tokens 0..V-1 in training, by vocabulary size V
    facts: dict[str, object]  # for `training.json`: source and amounts
    steps_per_epoch: float  # in which each text of the data comes once; 0 where no row of a batch is from the data


def holds_conversations(data: str) -> bool:
    """Whether `data` is read as conversations or plain texts, not as source code or a folder of responses."""
    return not is_source_code(data) and not is_response_folder(data)


def open_feed(
    settings: FeedSettings, target: TargetModel, tokenizer: PreTrainedTokenizerBase, context: TrainContext
) -> Feed:
    """The feed of `settings.data`.

    Raises:
        DataError: the data cannot be read or used.
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


def source_code_feed(
    settings: FeedSettings, target: TargetModel, tokenizer: PreTrainedTokenizerBase, context: TrainContext
) -> Feed:
    """Windows of Python sources and of the target's continuations of them."""
    config, bos = settings.config, tokenizer.bos_token_id
    root = corpus_root(settings.data)
    sources = load_corpus(root)
    training, held_out = split(sources, keep_duplicates=settings.keep_duplicates)
    if not held_out:
        raise DataError(f"{settings.data} holds a single text: at least two are needed, one of them held out")
    files = encode_sources(settings, training, tokenizer)
    held_out_ids = tokenizer([file.text for file in held_out], add_special_tokens=False, verbose=False)["input_ids"]
    elsewhere = Passages(held_out_ids)
    responses: list[Tensor] = []
    if config.response_fraction and config.responses.folders:
        examples = folder_responses(
            config.responses, tokenizer, config.window, settings.target, keep_evaluation=settings.keep_evaluation
        )
        responses = [text.tokens.long() for text in examples if not _continues(text, elsewhere, tokenizer)]
    elif config.response_fraction:
        front = () if bos is None else (bos,)
        count, seed = config.responses.count, config.seed
        prompts = text_prompts(files, count, tokenizer, front, config.responses, seed, elsewhere=elsewhere)
        texts = own_responses(prompts, config, target, context, settings.folder, settings.written_by)
        responses = [text for text, _ in texts]
    if config.response_fraction and (tokens := sum(map(len, responses))) < 2 * config.window:
        raise DataError(
            f"the target's own {len(responses)} texts have {tokens} tokens, less than two windows of {config.window}: "
            "generate more (--responses.count, or --count of redrafter respond)"
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
        Repeated(partial(mixed_batches, files, responses, bos, config)),
        held_out_windows(tokenizer, settings.held_out_windows, length=config.window, corpus=root),
        measured,
        partial(token_frequencies, files, responses, config.response_fraction),
        {"data": settings.data, **facts, "own_texts": len(responses), "measured_prompts": len(measured)},
        text_steps(files, config.window, bos, config.data_rows),
    )


def encode_sources(
    settings: FeedSettings, sources: list[SourceFile], tokenizer: PreTrainedTokenizerBase
) -> list[Tensor]:
    """Token ids of each source file.

    Raises DataError for ids that the target has no embedding of.
    """
    files = encode_files(sources, tokenizer)
    for file, ids in zip(sources, files, strict=True):
        if beyond := beyond_embedding(ids.tolist(), settings.vocab_size, tokenizer):
            raise DataError(f"{settings.data}: {file.path} cannot be trained with: {beyond}")
    return files


def conversation_feed(
    settings: FeedSettings, target: TargetModel, tokenizer: PreTrainedTokenizerBase, context: TrainContext
) -> Feed:
    """Batches of conversations or plain texts, and of the target's responses to prompts from them."""
    config, quiet = settings.config, context.rank != 0
    divided, report = divided_conversations(settings, tokenizer, quiet=quiet)
    training, held_out = divided.training, divided.held_out
    if not quiet:
        print(report)
        print(divided.split)
    responses: Sequence[Example] = []
    if config.response_fraction and config.responses.folders:
        responses = folder_responses(
            config.responses, tokenizer, config.window, settings.target, keep_evaluation=settings.keep_evaluation
        )
    elif config.response_fraction:
        prompts = response_prompts(training, held_out, tokenizer, config.window, config.responses, config.seed)
        texts = own_responses(prompts, config, target, context, settings.folder, settings.written_by)
        responses = [response_example(text, start, tokenizer) for text, start in texts]
    responses = texts_before(responses, divided.split.keys)
    if config.response_fraction and not responses:
        raise DataError(
            "there are no responses of the target to train on: --responses.count is 0, or all contain held-out text"
        )
    measured = held_out_prompts(divided, EVALUATION_PROMPTS, tokenizer, config.responses)
    facts: dict[str, object] = {"data": settings.data}
    facts |= {"used": report.used, "skipped": report.skipped, "truncated": report.truncated}
    facts["opening_dropped"] = report.opening
    facts |= divided.split.facts() | {"own_texts": len(responses), "measured_prompts": len(measured)}
    return packed_feed(settings, target, context, training, responses, held_out, measured, facts)


def divided_conversations(
    settings: FeedSettings, tokenizer: PreTrainedTokenizerBase, *, quiet: bool
) -> tuple[Divided, DataReport]:
    """The conversations or plain texts of the data as examples."""
    encoder = ExampleEncoder(
        tokenizer, settings.config.window, settings.chat_template, settings.chat_template_kwargs, settings.vocab_size
    )
    load = partial(load_examples, config=settings.data_config, keep_evaluation=settings.keep_evaluation, quiet=quiet)
    examples, report = load(settings.examples, settings.data, encoder, split=settings.data_split)
    marked = range(0)
    if settings.held_out_split is not None:
        marked_examples, _ = load(None, settings.data, encoder, split=settings.held_out_split)
        marked = range(len(examples), len(examples) + len(marked_examples))
        examples = [*examples, *marked_examples]
    return divide_examples(examples, marked=marked, keep_duplicates=settings.keep_duplicates), report


def packed_feed(
    settings: FeedSettings,
    target: TargetModel,
    context: TrainContext,
    training: Sequence[Example],
    responses: Sequence[Example],
    held_out: Sequence[Example],
    measured: list[Tensor],
    facts: dict[str, object],
) -> Feed:
    """The feed of examples, packed if the target supports it."""
    config = settings.config
    fraction = config.response_fraction if responses else 0.0
    min_length = config.beam_length + 1
    window = packed_window(settings, target, context)
    texts = [*training, *(responses if fraction else [])]
    amounts = {
        "training_tokens": sum(map(len, texts)),
        "learned_tokens": sum(int(text.loss_mask.sum()) for text in texts),
    }
    batches = partial(
        conversation_batches,
        training,
        responses,
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
        partial(example_frequencies, training, responses, fraction),
        facts | amounts | {"packed": window is not None},
        pass_steps(training, config.data_rows if fraction else config.batch_size, config.seed, window),
    )


def packed_window(settings: FeedSettings, target: TargetModel, context: TrainContext) -> int | None:
    """Tokens of a row to pack conversations into; None gives each its own row, by choice or because of the target."""
    if not settings.config.packing:
        return None
    # With a cache the target computes every document separately.
    if settings.hidden_cache or context.of_first(float(show_borders(target))):
        return settings.config.window
    if context.rank == 0:
        print(f"{type(target.model).__name__} does not keep packed documents apart: each gets its own row")
    return None


def response_feed(
    settings: FeedSettings, target: TargetModel, tokenizer: PreTrainedTokenizerBase, context: TrainContext
) -> Feed:
    """The texts of a folder of responses, and nothing else."""
    config = settings.config
    texts = load_responses(
        Path(settings.data),
        tokenizer,
        config.window,
        config.responses.longest_repeat,
        further=config.responses.folders,
        target=settings.target,
        any_target=config.responses.any_target,
        keep_duplicates=settings.keep_duplicates,
        keep_evaluation=settings.keep_evaluation,
    )
    if context.rank == 0:
        print(texts.split)
    measured = distinct(map(first_prompt, texts.prompts))[:EVALUATION_PROMPTS]
    facts = {"data": settings.data, **texts.facts, "measured_prompts": len(measured)}
    return packed_feed(settings, target, context, texts.training, [], texts.held_out, measured, facts)


def _continues(text: Example, held_out: Passages, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the prompt of `text` occurs in a held-out text."""
    return without_special(first_prompt(text), set(tokenizer.all_special_ids)) in held_out
