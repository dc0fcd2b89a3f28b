# SPDX-License-Identifier: Apache-2.0
"""Conversations as training batches: loss on the answers only, first answers also rewritten.

Rows are packed with several conversations, or hold one each and are as long as the longest of their batch. What is held
out is decided by content, the same for every seed; see `redrafter_training.data.splits`.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from redrafter_training.config.recipe import ResponseConfig
from redrafter_training.data.packing import Packing, arrange
from redrafter_training.data.report import DataError
from redrafter_training.data.splits import Content, Split, divide, text_key
from redrafter_training.data.text_prompts import Passages, distinct, text_prompts
from redrafter_training.data.tokenize import Example
from redrafter_training.data.windows import Windows

ROW_MULTIPLE = 16  # row lengths repeat, which spares allocators and compilers new shapes


@dataclass(frozen=True)
class Divided:
    """Examples to train on, to measure on, and one for each held-out prompt."""

    training: list[Example]
    held_out: list[Example]
    prompts: list[Example]
    split: Split


def divide_examples(
    examples: Sequence[Example], *, marked: Iterable[int] = (), keep_duplicates: bool = False
) -> Divided:
    """The examples divided by what they say; see `redrafter_training.data.splits.divide`.

    Raises:
        DataError: nothing can be held out, or nothing is left to train on.
    """
    contents = [example.content for example in examples]
    split = divide([c for c in contents if c is not None], marked=marked, keep_duplicates=keep_duplicates)
    training, held_out = (
        [cut for text in kept if (cut := examples[text.index].up_to(text.exchanges)) is not None]
        for kept in (split.training, split.held_out)
    )
    return Divided(training, held_out, [examples[index] for index in split.prompts], split)


def hold_out(examples: Sequence[Example]) -> tuple[list[Example], list[Example]]:
    """(training, held out) of `divide_examples`."""
    divided = divide_examples(examples)
    return divided.training, divided.held_out


def collate(examples: Sequence[Example], min_length: int) -> Windows:
    """Rows of one example each, padded; a position counts when the token after it is to be learned. [B, L >= min_length]"""
    longest = max(min_length, *(len(example) for example in examples))
    return arrange([[example] for example in examples], -(-longest // ROW_MULTIPLE) * ROW_MULTIPLE)


def conversation_batches(
    conversations: Sequence[Example],
    answers: Sequence[Example],
    *,
    batch_size: int,
    response_fraction: float,
    min_length: int,
    seed: int,
    window: int | None = None,
) -> Iterator[Windows]:
    """Endless batches of which `response_fraction` of the rows come from `answers`; each source in a new order per pass.

    Args:
        min_length: fewest tokens of a row.
        window: pack several examples into each row of so many tokens; None gives each example a row of its own.

    Raises:
        ValueError: rows of a source are wanted that is empty.
    """
    wanted = round(batch_size * response_fraction)
    sources = [(conversations, batch_size - wanted), (answers, wanted)]
    streams = [(_row_stream(source, seed + number, window), rows) for number, (source, rows) in enumerate(sources)]
    while True:
        chosen = [next(stream) for stream, rows in streams for _ in range(rows)]
        yield collate([example for (example,) in chosen], min_length) if window is None else arrange(chosen, window)


def held_out_rows(examples: Sequence[Example], min_length: int, window: int | None) -> Windows:
    """The examples to measure on, in rows like those of the batches; no rows where there are none."""
    if not examples:
        return Windows.full(torch.empty(0, min_length, dtype=torch.long))
    if window is None:
        return collate(examples, min_length)
    packing = Packing(examples, window, seed=0)
    return packing.rows(range(len(packing)))


def first_prompt(example: Example) -> Tensor:
    """What the first answer was given to, or else the tokens before the first one to be learned. [n] int64"""
    return example.tokens[: example.asked or int(example.loss.int().argmax())].long()


def response_prompts(
    training: Sequence[Example],
    held_out: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    config: ResponseConfig,
    seed: int,
) -> list[Tensor]:
    """Different prompts for the target: first prompts of at most half of `length`, or stretches of plain text.

    Raises:
        DataError: there is none.
    """
    if any(example.is_text for example in training):
        prompts = cut_prompts(training, held_out, config.count, tokenizer, config, seed)
        if not prompts:
            raise DataError("the texts have no prompt for the target to go on from that is not held out")
        return prompts
    prompts = distinct(prompt for prompt in map(first_prompt, training) if 1 <= len(prompt) <= length // 2)
    if not prompts:
        raise DataError(f"no prompt of at most {length // 2} tokens, half of --window, for the target to answer")
    order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(seed)).tolist()
    return [prompts[number] for number in order]


def held_out_prompts(
    divided: Divided, count: int, tokenizer: PreTrainedTokenizerBase, config: ResponseConfig
) -> list[Tensor]:
    """At most `count` different prompts that no training has seen.

    Raises:
        DataError: there is none.
    """
    if any(example.is_text for example in divided.held_out):
        prompts = cut_prompts(divided.held_out, divided.training, count, tokenizer, config, seed=1)
    else:
        prompts = distinct(prompt for prompt in map(first_prompt, divided.prompts) if len(prompt))[:count]
    if not prompts:
        raise DataError("what is held out has no prompt to measure on that does not stand in what is trained on")
    return prompts


def cut_prompts(
    examples: Sequence[Example],
    others: Sequence[Example],
    count: int,
    tokenizer: PreTrainedTokenizerBase,
    config: ResponseConfig,
    seed: int,
) -> list[Tensor]:
    """At most `count` different stretches of pieces of plain text that stand in none of `others`."""
    begins = int(examples[0].tokens[0])
    front = (begins,) if begins == tokenizer.bos_token_id else ()
    elsewhere = Passages([example.tokens.tolist() for example in others])
    texts = [example.tokens for example in examples]
    return text_prompts(texts, count, tokenizer, front, config, seed, elsewhere=elsewhere)


def response_example(text: Tensor, start: int, tokenizer: PreTrainedTokenizerBase) -> Example:
    """A text whose tokens from `start` on the target has written."""
    said = tokenizer.batch_decode([text[:start], text[start:]], skip_special_tokens=True)
    prompt, answer = map(text_key, said)
    content = Content(prompt, ((prompt, answer),))
    loss = torch.arange(len(text)) >= start
    return Example("written by the target", text.int(), loss, content=content, ends=(len(text),))


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
