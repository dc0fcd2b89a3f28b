# SPDX-License-Identifier: Apache-2.0
"""Conversations as training batches: loss on the answers only, first answers also rewritten.

Rows are packed with several conversations, or hold one each and are as long as the longest of their batch. Of the
conversations 5 % are held out, the same ones for every seed.
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
from training.loops import loop_start
from training.packing import Packing, arrange

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
    return arrange([[example] for example in examples], -(-longest // ROW_MULTIPLE) * ROW_MULTIPLE)


def conversation_batches(
    conversations: Sequence[Example],
    answers: Sequence[Example],
    *,
    batch_size: int,
    answer_fraction: float,
    least: int,
    seed: int,
    window: int | None = None,
) -> Iterator[Windows]:
    """Endless batches of which `answer_fraction` of the rows come from `answers`; each source in a new order per pass.

    Args:
        least: fewest tokens of a row.
        window: pack several examples into each row of so many tokens; None gives each example a row of its own.

    Raises:
        ValueError: rows of a source are wanted that is empty.
    """
    wanted = round(batch_size * answer_fraction)
    sources = [(conversations, batch_size - wanted), (answers, wanted)]
    streams = [(_row_stream(source, seed + number, window), rows) for number, (source, rows) in enumerate(sources)]
    while True:
        chosen = [next(stream) for stream, rows in streams for _ in range(rows)]
        yield collate([example for (example,) in chosen], least) if window is None else arrange(chosen, window)


def held_out_rows(examples: Sequence[Example], least: int, window: int | None) -> Windows:
    """The examples to measure on, in rows like those of the batches."""
    if window is None:
        return collate(examples, least)
    packing = Packing(examples, window, seed=0)
    return packing.rows(range(len(packing)))


def first_prompt(example: Example) -> Tensor:
    """What the first answer was given to, or else the tokens before the first one to be learned. [n] int64"""
    return example.tokens[: example.asked or int(example.loss.int().argmax())].long()


def write_answers(
    target: FrozenTarget, conversations: Sequence[Example], length: int, config: ResponseConfig, seed: int
) -> list[tuple[Tensor, int]]:
    """`config.count` texts, each a conversation's first prompt with the target's own answer, and the prompt's length.

    Prompts that leave less than half of `length` are passed over; similar lengths share a batch, and the configured
    temperatures alternate from batch to batch. A text ends before it goes round in circles.

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
        for text, prompt in zip(continued, batch, strict=True):
            texts.append((text[: loop_start(text.tolist(), len(prompt), config.longest_repeat)], len(prompt)))
    return texts


def answer_example(text: Tensor, start: int) -> Example:
    """A text whose tokens from `start` on the target has written."""
    return Example("written by the target", text.int(), torch.arange(len(text)) >= start)


def _row_stream(source: Sequence[Example], seed: int, window: int | None) -> Iterator[Sequence[Example]]:
    """The examples of each row, pass after pass over the source, endlessly."""
    if not source:
        raise ValueError("rows of a batch should come from a source of data that is empty")
    generator = torch.Generator().manual_seed(seed)
    while True:
        if window is None:
            yield from ([source[index]] for index in torch.randperm(len(source), generator=generator).tolist())
        else:
            packing = Packing(source, window, int(torch.randint(2**31, (), generator=generator)))
            yield from map(packing.members, range(len(packing)))
