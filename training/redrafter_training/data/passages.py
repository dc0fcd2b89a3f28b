# SPDX-License-Identifier: Apache-2.0
"""Passages: short pieces of many rows in random order, so that the positions of a training step are from many texts.

Neighbouring positions of a text have similar gradients. A step on two whole rows of SmolLM2's answers has a gradient
with six times the variance of one on as many positions in passages of 8 from 80 rows (docs/dev/log.md).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from redrafter_training.data.windows import Windows
from redrafter_training.target import packed_attention


@dataclass(frozen=True, kw_only=True)
class Passages(Windows):
    """Windows cut from longer rows, with what a row says about them and a passage alone does not."""

    hidden: Tensor  # [B, L, H], the target's hidden states
    top1_ids: Tensor  # [B, L], the target's likeliest tokens
    next_tokens: Tensor  # [B, L], -1 where there is none
    overlap: int  # the last tokens of each, whose positions are in the row's next passage

    @property
    def positions_per_row(self) -> int:
        return self.tokens.shape[1] - self.overlap

    @property
    def num_tokens(self) -> int:
        counted = self.loss_mask if self.doc_ids is None else self.doc_ids >= 0
        return int(counted[:, : self.positions_per_row].sum())


@dataclass(frozen=True)
class Mix:
    """How batches become passages: the positions of each `batches` batches are shuffled, `positions` together.

    `steps` is the number of batches that there are in all: behind the last group nothing is read.
    """

    batches: int
    positions: int
    overlap: int  # tokens that a passage needs behind its positions: those that the drafter drafts
    steps: int
    seed: int


States = Callable[[Windows], tuple[Tensor, Tensor]]


def mixed(batches: Iterable[Windows], mix: Mix, states: States, first: int, rank: int = 0) -> Iterator[Passages]:
    """A step's passages for each of `batches`, from step `first` on; every position that carries loss comes once.

    A run that is continued with more `steps` begins in a last group that is larger than it was, with other passages.

    Args:
        batches: from the job's first batch on; of several workers, the share of this one, which has number `rank`.
        states: hidden states [B, L, H] and likeliest tokens [B, L] of a batch.
    """
    begin = first - first % mix.batches
    remaining = islice(batches, begin, None)
    while begin < mix.steps:
        count = min(mix.batches, mix.steps - begin)
        group = [cut(batch, *states(batch), mix.positions, mix.overlap) for batch in islice(remaining, count)]
        passages = concatenated(group)
        order = _order(passages, count, mix, np.random.default_rng([mix.seed, begin, rank]))
        skipped = max(first - begin, 0)
        yield from (passages.rows(torch.from_numpy(part)) for part in np.array_split(order, count)[skipped:])
        begin += count


def _order(passages: Passages, steps: int, mix: Mix, rng: np.random.Generator) -> np.ndarray:
    """The passages in random order, without those that carry no loss unless a step would be left without any."""
    depths = range(1, mix.overlap + 1)
    counting = torch.stack([passages.terms(depth, 0, mix.positions).any(1) for depth in depths]).any(0)
    kept = np.flatnonzero(counting.numpy())
    return rng.permutation(kept if len(kept) >= steps else len(passages))


def cut(windows: Windows, hidden: Tensor, top1_ids: Tensor, positions: int, overlap: int) -> Passages:
    """The rows [B, L] in passages of `positions` context positions and `overlap` tokens behind them.

    The last passage of a row is padded. [B · passages per row, positions + overlap]
    """
    length = windows.tokens.shape[1]
    per_row = max(-(-(length - overlap) // positions), 1)
    missing = per_row * positions + overlap - length
    labels = packed_attention.next_tokens(windows.tokens, windows.loss_mask, windows.doc_ids)

    def pieces(tensor: Tensor, value: int) -> Tensor:
        padding = (0, 0, 0, missing) if tensor.dim() == 3 else (0, missing)
        padded = pad(tensor, padding, value=value)
        return padded.unfold(1, positions + overlap, positions).flatten(0, 1)

    return Passages(
        pieces(windows.tokens, 0),
        pieces(windows.loss_mask, False),
        None if windows.doc_ids is None else pieces(windows.doc_ids, -1),
        hidden=pieces(hidden, 0).transpose(1, 2),
        top1_ids=pieces(top1_ids, -1),
        next_tokens=pieces(labels, -1),
        overlap=overlap,
    )


def concatenated(parts: Sequence[Passages]) -> Passages:
    """The rows of all `parts`, which have one length."""
    documents = [part.doc_ids for part in parts if part.doc_ids is not None]
    return Passages(
        torch.cat([part.tokens for part in parts]),
        torch.cat([part.loss_mask for part in parts]),
        torch.cat(documents) if documents else None,
        hidden=torch.cat([part.hidden for part in parts]),
        top1_ids=torch.cat([part.top1_ids for part in parts]),
        next_tokens=torch.cat([part.next_tokens for part in parts]),
        overlap=parts[0].overlap,
    )
