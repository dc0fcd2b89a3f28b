# SPDX-License-Identifier: Apache-2.0
from itertools import islice
from typing import Any

import pytest
import torch

from training.config import ResponseConfig
from training.data import Windows, cut_windows, mixed_batches, text_batches
from training.frozen_target import FrozenTarget
from training.generate import continue_prompts, make_responses

FILES = [torch.arange(100, 160), torch.arange(200, 237)]


def test_windows_are_stretches_of_the_files_after_bos() -> None:
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


def test_batches_go_on_after_an_epoch() -> None:
    batches = list(islice(text_batches(FILES, 8, 5, 3, seed=0), 20))
    assert sum(map(len, batches)) > 13 * 2
    assert all(b.shape[1] == 8 for b in batches)


def test_mixture_holds_the_asked_share_and_uses_every_response() -> None:
    responses = Windows.full(torch.arange(6)[:, None].expand(6, 8).clone())
    batches = list(islice(mixed_batches(text_batches(FILES, 8, 5, 2, 0), responses, 4, 0.5, 0), 3))
    assert all(len(b) == 4 and (b.tokens[:2, 1:] >= 100).all() for b in batches)
    assert sorted(int(t) for b in batches for t in b.tokens[2:, 0]) == list(range(6))


def test_mixture_without_responses() -> None:
    batch = next(mixed_batches(text_batches(FILES, 8, 5, 4, 0), None, 4, 0.0, 0))
    assert len(batch) == 4
    with pytest.raises(ValueError, match="there are none"):
        next(mixed_batches(text_batches(FILES, 8, 5, 4, 0), None, 4, 0.5, 0))


def test_greedy_continuations_of_mixed_lengths_are_the_targets_own(tiny_target: FrozenTarget) -> None:
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(3, 40, (n,), generator=generator) for n in (2, 5, 9)]
    for text, prompt in zip(continue_prompts(tiny_target, prompts, 12), prompts, strict=True):
        expected = prompt
        while len(expected) < len(prompt) + 12 and not (len(expected) > len(prompt) and expected[-1] == 1):
            best = tiny_target.model(input_ids=expected[None]).logits[0, -1].argmax()
            expected = torch.cat([expected, best[None]])
        assert text.tolist() == expected.tolist()


def test_responses_are_seeded_windows_with_a_valid_prefix(tiny_target: FrozenTarget) -> None:
    config = ResponseConfig(count=5, temperatures=(0.0, 1.0), min_prompt=2, max_prompt=6, batch_size=2)
    files = [torch.arange(3, 40).repeat(3)]
    made = [make_responses(tiny_target, files, 16, 0, config, 3, quiet=True) for _ in range(2)]
    assert torch.equal(made[0].tokens, made[1].tokens)
    tokens, valid = made[0].tokens, made[0].valid
    assert tokens.shape == (5, 16)
    assert (tokens[:, 0] == 0).all()
    assert valid[:, :2].all()
    # Valid tokens form a prefix, which either fills the window or stops at the end-of-text token.
    assert (valid[:, 1:] <= valid[:, :-1]).all()
    for row, ok in zip(tokens, valid, strict=True):
        assert ok.all() or row[ok][-1] == 1


@pytest.mark.parametrize(
    "change", [{"count": -1}, {"temperatures": ()}, {"temperatures": (-1.0,)}, {"min_prompt": 9, "max_prompt": 8}]
)
def test_impossible_response_settings(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        ResponseConfig(**change)
