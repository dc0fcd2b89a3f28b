# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from redrafter_training.data.vocab_mapping import choose_draft_vocabulary, token_frequencies


def test_sources_are_weighted_as_in_training() -> None:
    """Four tokens of text, half 1 and half 3; two of responses, both 2. A quarter of training is text."""
    files = [torch.tensor([1, 1]), torch.tensor([3, 3])]
    frequencies = token_frequencies(files, [torch.tensor([2, 2])], 0.75, 5)
    torch.testing.assert_close(frequencies, torch.tensor([0, 0.125, 0.75, 0.125, 0], dtype=torch.float64))
    text_only = token_frequencies(files, [], 0.0, 5)
    torch.testing.assert_close(text_only, torch.tensor([0, 0.5, 0, 0.5, 0], dtype=torch.float64))


def test_most_frequent_first_then_lower_ids() -> None:
    frequencies = torch.tensor([0.0, 0.1, 0.3, 0.1, 0.4, 0.1])
    chosen = choose_draft_vocabulary(frequencies, 3)
    assert chosen.tokens.tolist() == [1, 2, 4]
    assert chosen.coverage == pytest.approx(0.8)
    assert choose_draft_vocabulary(frequencies, 6).tokens.tolist() == [0, 1, 2, 3, 4, 5]


def test_impossible_choices() -> None:
    with pytest.raises(ValueError, match="7 does not fit a vocabulary of 6"):
        choose_draft_vocabulary(torch.ones(6), 7)
    with pytest.raises(ValueError, match="no tokens"):
        token_frequencies([], [], 0.0, 4)
    with pytest.raises(ValueError, match="no tokens"):
        token_frequencies([torch.tensor([1])], [], 0.5, 4)
