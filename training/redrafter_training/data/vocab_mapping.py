# SPDX-License-Identifier: Apache-2.0
"""Which of the target's tokens a trimmed drafter proposes: the most frequent of the training data."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class DraftVocabulary:
    """The chosen tokens and how much of the training data they make up."""

    tokens: Tensor  # [D] int64 target ids, ascending
    coverage: float  # fraction of the training data's tokens


def token_frequencies(
    files: Sequence[Tensor], answers: Sequence[Tensor], response_fraction: float, vocab_size: int
) -> Tensor:
    """How often training meets each token: [V] fp64, adding up to 1.

    Texts and the target's answers weigh as they do in the batches, whatever the number of tokens at hand of each.

    Raises:
        ValueError: a source that is to be used has no tokens.
    """
    frequencies = torch.zeros(vocab_size, dtype=torch.float64)
    for share, parts in ((1 - response_fraction, files), (response_fraction, answers)):
        if share:
            counts = sum((torch.bincount(part, minlength=vocab_size) for part in parts), torch.zeros(vocab_size).long())
            if not counts.sum():
                raise ValueError("there are no tokens to choose a draft vocabulary from")
            frequencies += share * counts.double() / counts.sum()
    return frequencies / frequencies.sum()


def choose_draft_vocabulary(frequencies: Tensor, size: int) -> DraftVocabulary:
    """The `size` most frequent tokens of `frequencies` [V], of equally frequent ones the lower ids.

    Raises:
        ValueError: `size` is not in 1..V.
    """
    if not 1 <= size <= len(frequencies):
        raise ValueError(f"a draft vocabulary of {size} does not fit a vocabulary of {len(frequencies)}")
    chosen = frequencies.argsort(descending=True, stable=True)[:size].sort().values
    return DraftVocabulary(chosen, float(frequencies[chosen].sum()))
