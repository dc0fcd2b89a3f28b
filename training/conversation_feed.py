# SPDX-License-Identifier: Apache-2.0
"""Conversations as training batches: one document per row, loss on the answers only, first answers also rewritten.

Rows are as long as the longest of their batch. Of the conversations 5 % are held out, the same ones for every seed.
"""

from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from training.config import ResponseConfig
from training.data import Windows
from training.data_report import DataError
from training.examples import Example
from training.frozen_target import FrozenTarget
from training.generate import continue_prompts

Held = TypeVar("Held")

HELD_OUT_SHARE = 20
ROW_MULTIPLE = 16  # row lengths repeat, which spares allocators and compilers new shapes


def hold_out(examples: Sequence[Held]) -> tuple[list[Held], list[Held]]:
    """(training, held out): every twentieth in a fixed random order, at least one.

    Raises:
        DataError: there are not two examples.
    """
    if len(examples) < 2:
        raise DataError(f"{len(examples)} usable conversation is too little: one must be held out")
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(0)).tolist()
    count = max(1, len(examples) // HELD_OUT_SHARE)
    return [examples[i] for i in sorted(order[count:])], [examples[i] for i in sorted(order[:count])]


def collate(examples: Sequence[Example], least: int) -> Windows:
    """Rows of one example each, padded; a position counts when the token after it is to be learned. [B, L >= least]"""
    longest = max(least, *(len(example) for example in examples))
    shape = (len(examples), -(-longest // ROW_MULTIPLE) * ROW_MULTIPLE)
    tokens, valid = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.bool)
    for row, example in enumerate(examples):
        tokens[row, : len(example)] = example.tokens
        valid[row, : len(example) - 1] = example.loss[1:]
    return Windows(tokens, valid)


def conversation_batches(
    conversations: Sequence[Example],
    answers: Sequence[Example],
    *,
    batch_size: int,
    answer_fraction: float,
    least: int,
    seed: int,
) -> Iterator[Windows]:
    """Endless batches of which `answer_fraction` of the rows come from `answers`; each source in a new order per pass.

    Raises:
        ValueError: rows of a source are wanted that is empty.
    """
    wanted = round(batch_size * answer_fraction)
    sources = [(conversations, batch_size - wanted), (answers, wanted)]
    streams = [(_shuffled(source, seed + number), rows) for number, (source, rows) in enumerate(sources) if rows]
    while True:
        yield collate([next(stream) for stream, rows in streams for _ in range(rows)], least)


def first_prompt(example: Example) -> Tensor:
    """The tokens before the first one to be learned. [n] int64"""
    return example.tokens[: int(example.loss.int().argmax())].long()


def write_answers(
    target: FrozenTarget, conversations: Sequence[Example], length: int, config: ResponseConfig, seed: int
) -> list[tuple[Tensor, int]]:
    """`config.count` texts, each a conversation's first prompt with the target's own answer, and the prompt's length.

    Prompts that leave less than half of `length` are passed over; similar lengths share a batch, and the configured
    temperatures alternate from batch to batch.

    Raises:
        DataError: no prompt is short enough.
    """
    torch.manual_seed(seed)
    prompts = [prompt for prompt in map(first_prompt, conversations) if 1 <= len(prompt) <= length // 2]
    if not prompts:
        raise DataError(f"no prompt of at most {length // 2} tokens, half of --window, for the target to answer")
    order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(seed)).tolist()
    chosen = [prompts[order[i % len(order)]] for i in range(config.count)]
    chosen.sort(key=len)
    texts = []
    for number, first in enumerate(range(0, len(chosen), config.batch_size)):
        batch = chosen[first : first + config.batch_size]
        temperature = config.temperatures[number % len(config.temperatures)]
        room = length - max(map(len, batch))
        continued = continue_prompts(target, batch, room, temperature=temperature)
        texts += [(text, len(prompt)) for text, prompt in zip(continued, batch, strict=True)]
    return texts


def answer_example(text: Tensor, start: int) -> Example:
    """A text whose tokens from `start` on the target has written."""
    return Example("written by the target", text.int(), torch.arange(len(text)) >= start)


def _shuffled(source: Sequence[Example], seed: int) -> Iterator[Example]:
    if not source:
        raise ValueError("rows of a batch should come from a source of data that is empty")
    generator = torch.Generator().manual_seed(seed)
    while True:
        for index in torch.randperm(len(source), generator=generator).tolist():
            yield source[index]
