# SPDX-License-Identifier: Apache-2.0
"""Examples divided into training and held-out ones, and the prompts of both parts; see `splits`."""

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from redrafter_training.config.recipe import ResponseConfig
from redrafter_training.data.report import DataError
from redrafter_training.data.splits import Content, Split, divide
from redrafter_training.data.text_keys import text_key
from redrafter_training.data.text_prompts import Passages, distinct, text_prompts
from redrafter_training.data.tokenize import Example


@dataclass(frozen=True)
class Divided:
    """The training examples, the held-out examples, and one example for each held-out prompt."""

    training: list[Example]
    held_out: list[Example]
    prompts: list[Example]
    split: Split


def divide_examples(
    examples: Sequence[Example], *, marked: Iterable[int] = (), keep_duplicates: bool = False
) -> Divided:
    """The examples divided by their content; see `redrafter_training.data.splits.divide`.

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


def texts_before(texts: Sequence[Example], keys: Set[int]) -> list[Example]:
    """Each text up to the first exchange that contains one of `keys`; texts that begin with one are left out."""
    cut = [text.up_to(kept) for text in texts if text.content is None or (kept := text.content.before(keys))]
    return [text for text in cut if text is not None]


def first_prompt(example: Example) -> Tensor:
    """The prompt of the first answer, or the tokens before the first one with loss. [n] int64"""
    return example.tokens[: example.asked or int(example.loss_mask.int().argmax())].long()


def response_prompts(
    training: Sequence[Example],
    held_out: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    config: ResponseConfig,
    seed: int,
) -> list[Tensor]:
    """Distinct prompts for the target: first prompts of at most half of `length`, or parts of plain texts.

    Raises:
        DataError: there is no such prompt.
    """
    if any(example.is_text for example in training):
        prompts = cut_prompts(training, held_out, config.count, tokenizer, config, seed)
        if not prompts:
            raise DataError("the texts have no prompt for the target to continue that is not held out")
        return prompts
    prompts = distinct(prompt for prompt in map(first_prompt, training) if 1 <= len(prompt) <= length // 2)
    if not prompts:
        raise DataError(f"no prompt of at most {length // 2} tokens, half of --window, for the target to answer")
    order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(seed)).tolist()
    return [prompts[number] for number in order]


def held_out_prompts(
    divided: Divided, count: int, tokenizer: PreTrainedTokenizerBase, config: ResponseConfig
) -> list[Tensor]:
    """At most `count` distinct prompts that do not occur in training.

    Raises:
        DataError: there is no such prompt.
    """
    if any(example.is_text for example in divided.held_out):
        prompts = cut_prompts(divided.held_out, divided.training, count, tokenizer, config, seed=1)
    else:
        prompts = distinct(prompt for prompt in map(first_prompt, divided.prompts) if len(prompt))[:count]
    if not prompts:
        raise DataError("every prompt of the held-out part occurs in the training part: there is none to measure on")
    return prompts


def cut_prompts(
    examples: Sequence[Example],
    others: Sequence[Example],
    count: int,
    tokenizer: PreTrainedTokenizerBase,
    config: ResponseConfig,
    seed: int,
) -> list[Tensor]:
    """At most `count` distinct parts of plain texts that occur in none of `others`."""
    first = int(examples[0].tokens[0])
    front = (first,) if first == tokenizer.bos_token_id else ()
    elsewhere = Passages([example.tokens.tolist() for example in others])
    texts = [example.tokens for example in examples]
    return text_prompts(texts, count, tokenizer, front, config, seed, elsewhere=elsewhere)


def response_example(text: Tensor, start: int, tokenizer: PreTrainedTokenizerBase) -> Example:
    """The example of a text [n] whose tokens from `start` on were generated by the target."""
    decoded = tokenizer.batch_decode([text[:start], text[start:]], skip_special_tokens=True)
    prompt, answer = map(text_key, decoded)
    content = Content(prompt, ((prompt, answer),))
    loss = torch.arange(len(text)) >= start
    return Example("written by the target", text.int(), loss, content=content, ends=(len(text),))
