# SPDX-License-Identifier: Apache-2.0
from itertools import islice

import pytest
import torch

from redrafter_training.config.recipe import Budget, DistillConfig, ResponseConfig
from redrafter_training.data.windows import cut_windows, mixed_batches, text_batches

FILES = [torch.arange(100, 160), torch.arange(200, 237)]


def test_windows_are_parts_of_the_files_after_bos() -> None:
    cut = cut_windows(FILES, 8, 5, torch.Generator().manual_seed(0))
    assert (cut[:, 0] == 5).all()
    body = cut[:, 1:]
    steps = body.diff(dim=1)
    # Inside a file consecutive ids differ by one; only a border between files may differ.
    assert (steps == 1).all(dim=1).sum() >= len(cut) - 1
    assert len(set(body.flatten().tolist())) == body.numel()
    assert len(cut) == (97 - 7 + 1) // 7 or len(cut) == 97 // 7


def test_windows_without_bos() -> None:
    cut = cut_windows(FILES, 8, None, torch.Generator().manual_seed(0))
    assert cut.shape[1] == 8
    assert (cut >= 100).all()


def test_too_little_text() -> None:
    with pytest.raises(ValueError, match="too few"):
        cut_windows(FILES, 60, None, torch.Generator())


def test_batches_continue_after_an_epoch() -> None:
    batches = list(islice(text_batches(FILES, 8, 5, 3, seed=0), 20))
    assert sum(map(len, batches)) > 13 * 2
    assert all(b.shape[1] == 8 for b in batches)


def mixture(share: float) -> DistillConfig:
    """Batches of four windows of eight tokens."""
    responses = ResponseConfig(min_prompt=1, max_prompt=4)
    return DistillConfig(Budget(1), beam_length=2, window=8, batch_size=4, response_fraction=share, responses=responses)


def test_mixture_has_the_given_fraction_and_uses_every_response() -> None:
    answers = [torch.arange(10, 20), torch.arange(30, 45), torch.arange(50, 67)]  # 42 tokens: 6 windows, or 5 and rests
    batches = list(islice(mixed_batches(FILES, answers, 5, mixture(0.5)), 2))
    assert all(b.loss_mask.all() and len(b) == 4 and (b.tokens[:2, 1:] >= 100).all() for b in batches)
    written = torch.cat([b.tokens[2:] for b in batches])
    assert (written[:, 0] == 5).all() and (written[:, 1:] < 100).all()
    assert len(set(written[:, 1:].flatten().tolist())) == 28  # no token of them twice in an epoch


@pytest.mark.parametrize(("share", "wanted"), [(0.0, True), (1.0, False)])
def test_mixture_of_one_source(share: float, wanted: bool) -> None:
    batch = next(mixed_batches(FILES, [torch.arange(10, 50)], 5, mixture(share)))
    assert len(batch) == 4 and bool((batch.tokens[:, 1:] >= 100).all()) == wanted


def test_mixture_without_responses() -> None:
    assert len(next(mixed_batches(FILES, [], 5, mixture(0.0)))) == 4
    with pytest.raises(ValueError, match="0 tokens are too few"):
        next(mixed_batches(FILES, [], 5, mixture(0.5)))
