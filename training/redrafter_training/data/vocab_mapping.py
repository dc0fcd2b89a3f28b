# SPDX-License-Identifier: Apache-2.0
"""The target's tokens that a trimmed drafter proposes: the most frequent ones of the training data."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from redrafter_training.data.tokenize import Example


@dataclass(frozen=True)
class DraftVocabulary:
    """The chosen tokens and their share of the training data."""

    tokens: Tensor  # [D] int64 target ids, ascending
    coverage: float  # fraction of the training data's tokens


def token_frequencies(
    files: Sequence[Tensor], answers: Sequence[Tensor], response_fraction: float, vocab_size: int
) -> Tensor:
    """The frequency of each token in training: [V] float64, with sum 1.

    Files and responses are weighted as in the batches, whatever their numbers of tokens.

    Raises:
        ValueError: a source with a positive weight has no tokens.
    """
    frequencies = torch.zeros(vocab_size, dtype=torch.float64)
    for share, parts in ((1 - response_fraction, files), (response_fraction, answers)):
        if share:
            counts = sum((torch.bincount(part, minlength=vocab_size) for part in parts), torch.zeros(vocab_size).long())
            if not counts.sum():
                raise ValueError("there are no tokens to choose a draft vocabulary from")
            frequencies += share * counts.double() / counts.sum()
    return frequencies / frequencies.sum()


def example_frequencies(
    training: Sequence[Example], responses: Sequence[Example], response_fraction: float, vocab_size: int
) -> Tensor:
    """`token_frequencies` of the tokens that carry loss."""
    learned, generated = ([text.tokens[text.loss_mask].long() for text in source] for source in (training, responses))
    return token_frequencies(learned, generated, response_fraction, vocab_size)


def choose_draft_vocabulary(frequencies: Tensor, size: int) -> DraftVocabulary:
    """The `size` most frequent tokens of `frequencies` [V]; of equally frequent ones, those with lower ids.

    Raises:
        ValueError: `size` is not in 1..V.
    """
    if not 1 <= size <= len(frequencies):
        raise ValueError(f"a draft vocabulary of {size} does not fit a vocabulary of {len(frequencies)}")
    chosen = frequencies.argsort(descending=True, stable=True)[:size].sort().values
    return DraftVocabulary(chosen, float(frequencies[chosen].sum()))
