# SPDX-License-Identifier: Apache-2.0
"""Prompts cut from texts: different stretches, which begin and end anywhere."""

import random
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from redrafter_training.config.recipe import ResponseConfig

TRIES = 20  # draws per prompt; texts with few different stretches give fewer prompts
BORDER = -1  # no token


@dataclass(frozen=True)
class Stretch:
    """Tokens of text number `text` from `start` on, behind the ids that are in front of every prompt."""

    text: int
    start: int
    ids: tuple[int, ...]


class Passages:
    """Whether a sequence of tokens is in any of some texts."""

    def __init__(self, texts: Sequence[Sequence[int]]) -> None:
        pieces = [torch.tensor([*text, BORDER], dtype=torch.int32) for text in texts]
        self._bytes = torch.cat(pieces).numpy().tobytes() if pieces else b""

    def __contains__(self, ids: object) -> bool:
        """Whether `ids` are in a text; a false yes needs the same bytes at a place between two ids."""
        return torch.tensor(ids, dtype=torch.int32).numpy().tobytes() in self._bytes


def cut_stretches(
    texts: Sequence[Sequence[int]],
    count: int,
    lengths: tuple[int, int],
    front: tuple[int, ...],
    rng: random.Random,
    *,
    elsewhere: Container[Sequence[int]] = (),
    block: int = 1,
) -> list[Stretch]:
    """At most `count` different stretches of texts; every token of the texts is equally likely to be in one.

    Args:
        texts: ids without those that the tokenizer puts in front of and behind a text.
        lengths: minimum and maximum number of tokens of a stretch; a shorter text may be taken whole.
        front: ids in front of every stretch, not counted.
        elsewhere: texts that must not contain a stretch: the other side of the split.
        block: this many stretches have one length, as far as texts are long enough: they share a batch.
    """
    usable = [number for number, ids in enumerate(texts) if ids]
    if not usable:
        return []
    weights = list(accumulate(len(texts[number]) for number in usable))
    found: dict[tuple[int, ...], Stretch] = {}
    length = lengths[1]
    for draw in range(TRIES * count):
        if len(found) == count:
            break
        if draw % block == 0:
            length = rng.randint(*lengths)
        number = rng.choices(usable, cum_weights=weights)[0]
        ids = texts[number]
        size = min(length, len(ids))
        start = rng.randint(0, len(ids) - size)
        body = tuple(ids[start : start + size])
        if body not in elsewhere:
            found.setdefault(body, Stretch(number, start, (*front, *body)))
    return list(found.values())


def text_prompts(
    texts: Sequence[Tensor],
    count: int,
    tokenizer: PreTrainedTokenizerBase,
    front: tuple[int, ...],
    config: ResponseConfig,
    seed: int,
    *,
    elsewhere: Container[Sequence[int]] = (),
) -> list[Tensor]:
    """At most `count` different prompts cut from tokenised texts, of the lengths in `config` with `front`. [n] int64"""
    special = set(tokenizer.all_special_ids)
    bodies = [without_special(text, special) for text in texts]
    lengths = (max(1, config.min_prompt - len(front)), max(1, config.max_prompt - len(front)))
    rng, block = random.Random(seed), config.batch_size
    found = cut_stretches(bodies, count, lengths, front, rng, elsewhere=elsewhere, block=block)
    return [torch.tensor(stretch.ids) for stretch in found]


def distinct(prompts: Iterable[Tensor]) -> list[Tensor]:
    """Each prompt once, in order."""
    first: dict[tuple[int, ...], Tensor] = {}
    for prompt in prompts:
        first.setdefault(tuple(prompt.tolist()), prompt)
    return list(first.values())


def without_special(text: Tensor, special: set[int]) -> list[int]:
    """The ids of a text without the special ones at its beginning and end."""
    ids = text.tolist()
    first = next((place for place, token in enumerate(ids) if token not in special), len(ids))
    last = next((place for place in range(len(ids), first, -1) if ids[place - 1] not in special), first)
    return ids[first:last]
