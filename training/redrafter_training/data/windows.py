# SPDX-License-Identifier: Apache-2.0
"""Batches of token windows, and windows cut from source files and plain responses."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Self, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from redrafter_training.config.recipe import DistillConfig
from redrafter_training.data.python_corpus import SourceFile, load_corpus, split
from redrafter_training.target import packed_attention

Batch = TypeVar("Batch")


@dataclass(frozen=True)
class Windows:
    """Token windows with their loss mask, which leaves out padding.

    With `doc_ids` a row may hold several documents, and the loss mask has the positions whose next token is of the same
    document and carries loss.
    """

    tokens: Tensor  # [B, L] int64
    loss_mask: Tensor  # [B, L] bool, a prefix of each row unless there are documents
    doc_ids: Tensor | None = None  # [B, L] int64, see `redrafter_training.target.packed_attention`

    def __post_init__(self) -> None:
        if self.tokens.shape != self.loss_mask.shape or self.tokens.dim() != 2:
            raise ValueError(
                f"windows need tokens and loss_mask [B, L], got {self.tokens.shape} and {self.loss_mask.shape}"
            )
        if self.doc_ids is not None and self.doc_ids.shape != self.tokens.shape:
            raise ValueError(f"doc_ids of {tuple(self.doc_ids.shape)} do not fit tokens {tuple(self.tokens.shape)}")

    @classmethod
    def full(cls, tokens: Tensor) -> "Windows":
        return cls(tokens, torch.ones_like(tokens, dtype=torch.bool))

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def num_tokens(self) -> int:
        """Tokens without padding."""
        return int((self.loss_mask if self.doc_ids is None else self.doc_ids >= 0).sum())

    @property
    def positions(self) -> Tensor | None:
        """Position ids that start anew in each document; None without `doc_ids`. [B, L]"""
        return None if self.doc_ids is None else packed_attention.positions_in(self.doc_ids)

    def terms(self, depth: int, first: int, last: int) -> Tensor:
        """The loss mask at a depth for context positions first <= p < last, by `packed_attention`. [B, last - first]"""
        return packed_attention.terms(self.loss_mask, self.doc_ids, depth, first, last)

    def rows(self, index: Tensor) -> Self:
        return self._each(lambda tensor: tensor[index])

    def share(self, rank: int, world_size: int) -> Self:
        """Every `world_size`-th row from `rank` on; if there is none, a row without loss."""
        if rank < len(self):
            return self.rows(torch.arange(rank, len(self), world_size))
        first = self.rows(torch.zeros(1, dtype=torch.long))
        return replace(first, loss_mask=torch.zeros_like(first.loss_mask))

    def to(self, device: torch.device) -> Self:
        return self._each(lambda tensor: tensor.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Self:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: change(value) for name, value in values.items() if isinstance(value, Tensor)})


def encode_files(files: list[SourceFile], tokenizer: PreTrainedTokenizerBase) -> list[Tensor]:
    """Token ids of each file, without BOS, and with EOS at the end if the tokenizer has one."""
    encoded = tokenizer([f.text for f in files], add_special_tokens=False, verbose=False)["input_ids"]
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return [torch.tensor([*ids, *end]) for ids in encoded]


def window_body(length: int, bos: int | None) -> int:
    """Tokens of a text in a window of `length`, which begins with `bos` if there is one."""
    return length if bos is None else length - 1


def text_steps(files: list[Tensor], length: int, bos: int | None, batch_size: int) -> float:
    """Batches of a pass of `text_batches`, one more or fewer by its random offset; 0 without rows."""
    if not batch_size:
        return 0.0
    windows = sum(map(len, files)) // window_body(length, bos)
    return float(-(-windows // batch_size))


def cut_windows(files: list[Tensor], length: int, bos: int | None, generator: torch.Generator) -> Tensor:
    """The files in random order, cut from a random offset into windows of `length` tokens, shuffled. [windows, length]

    With `bos` every window starts with it, as does a served prompt from the middle of a file.

    Raises:
        ValueError: the files are too short for two windows.
    """
    body = window_body(length, bos)
    if sum(map(len, files)) < 2 * body:
        raise ValueError(f"{sum(map(len, files))} tokens are too few for windows of {length}")
    stream = torch.cat([files[i] for i in torch.randperm(len(files), generator=generator)])
    phase = int(torch.randint(body, (), generator=generator))
    count = (len(stream) - phase) // body
    cut = stream[phase : phase + count * body].view(count, body)
    cut = cut[torch.randperm(count, generator=generator)]
    return cut if bos is None else torch.cat([torch.full((count, 1), bos), cut], dim=1)


def held_out_windows(
    tokenizer: PreTrainedTokenizerBase, count: int, *, length: int, corpus: Path | None = None
) -> Windows:
    """At most `count` windows of the held-out source files, the same ones every time. B <= count, L = length"""
    files = encode_files(split(load_corpus(corpus))[1], tokenizer)
    return Windows.full(cut_windows(files, length, tokenizer.bos_token_id, torch.Generator().manual_seed(0))[:count])


def text_batches(
    files: list[Tensor], length: int, bos: int | None, batch_size: int, seed: int, *, fixed: bool = False
) -> Iterator[Tensor]:
    """Endless batches [B, length] of windows, cut anew in each epoch, or, if `fixed`, only shuffled anew."""
    generator = torch.Generator().manual_seed(seed)
    windows = cut_windows(files, length, bos, generator)
    while True:
        yield from windows.split(batch_size)
        if fixed:
            windows = windows[torch.randperm(len(windows), generator=generator)]
        else:
            windows = cut_windows(files, length, bos, generator)


class Repeated(Iterable[Batch]):
    """Batches that start from the beginning with each iteration."""

    def __init__(self, start: Callable[[], Iterator[Batch]]) -> None:
        self._start = start

    def __iter__(self) -> Iterator[Batch]:
        return self._start()


def mixed_batches(
    files: list[Tensor], answers: list[Tensor], bos: int | None, config: DistillConfig
) -> Iterator[Windows]:
    """Endless batches with `response_fraction` of the rows cut from `answers`, the others from `files`.

    Raises:
        ValueError: a source with a share of the rows is too short.
    """
    wanted = round(config.batch_size * config.response_fraction)
    sources = [(files, config.batch_size - wanted), (answers, wanted)]
    streams = [
        text_batches(texts, config.window, bos, rows, config.seed + number, fixed=config.fixed_windows)
        for number, (texts, rows) in enumerate(sources)
        if rows
    ]
    while True:
        yield Windows.full(torch.cat([next(stream) for stream in streams]))
