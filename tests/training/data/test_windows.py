# SPDX-License-Identifier: Apache-2.0
import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from redrafter_training.config.recipe import Budget, DistillConfig, ResponseConfig
from redrafter_training.data.windows import cut_windows, mixed_batches, text_batches
from redrafter_training.responses.repetition import repetition_start
from redrafter_training.responses.transformers_engine import continue_prompts, write_texts
from redrafter_training.target.model import TargetModel
from tests.models import HOSTILE_GENERATION

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


def mixture(share: float) -> DistillConfig:
    """Batches of four windows of eight tokens."""
    responses = ResponseConfig(min_prompt=1, max_prompt=4)
    return DistillConfig(Budget(1), beam_length=2, window=8, batch_size=4, response_fraction=share, responses=responses)


def test_mixture_holds_the_asked_share_and_uses_every_answer() -> None:
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


def test_mixture_without_answers() -> None:
    assert len(next(mixed_batches(FILES, [], 5, mixture(0.0)))) == 4
    with pytest.raises(ValueError, match="0 tokens are too few"):
        next(mixed_batches(FILES, [], 5, mixture(0.5)))


def test_greedy_continuations_of_mixed_lengths_are_the_targets_own(tiny_target: TargetModel) -> None:
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(3, 40, (n,), generator=generator) for n in (2, 5, 9)]
    for text, prompt in zip(continue_prompts(tiny_target, prompts, 12), prompts, strict=True):
        expected = prompt
        while len(expected) < len(prompt) + 12 and not (len(expected) > len(prompt) and expected[-1] == 1):
            best = tiny_target.model(input_ids=expected[None]).logits[0, -1].argmax()
            expected = torch.cat([expected, best[None]])
        assert text.tolist() == expected.tolist()


def test_greedy_is_the_likeliest_token_whatever_the_generation_config_holds(
    tiny_target: TargetModel, tmp_path: Path
) -> None:
    tiny_target.model.save_pretrained(tmp_path)
    stored = tmp_path / "generation_config.json"
    hostile = json.loads(stored.read_text()) | HOSTILE_GENERATION | {"eos_token_id": [1, 2], "pad_token_id": 3}
    stored.write_text(json.dumps(hostile))
    target = TargetModel(AutoModelForCausalLM.from_pretrained(tmp_path))
    assert target.model.generation_config.repetition_penalty == 9.0
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(3, 40, (n,), generator=generator) for n in (2, 5, 9)]
    made = continue_prompts(target, prompts, 12)
    assert len(made) == 3
    for text, prompt in zip(made, prompts, strict=True):
        expected = prompt
        while len(expected) < len(prompt) + 12 and not (len(expected) > len(prompt) and expected[-1] in (1, 2)):
            best = tiny_target.model(input_ids=expected[None]).logits[0, -1].argmax()
            expected = torch.cat([expected, best[None]])
        assert text.tolist() == expected.tolist()
    assert target.model.generation_config.repetition_penalty == 9.0  # it is the target's, and stays
    # Sampling follows the temperature alone: the generation config would leave three tokens to choose from.
    torch.manual_seed(0)
    drawn = continue_prompts(target, [torch.tensor([5])] * 300, 1, temperature=100.0)
    assert len({int(text[1]) for text in drawn}) > 30


def test_texts_are_seeded_and_end_by_themselves_or_with_the_window(tiny_target: TargetModel) -> None:
    config = ResponseConfig(5, batch_size=2, longest_repeat=0)
    asked = [(torch.tensor([0, *range(n, n + 3 + n % 2)]), (0.0, 1.0)[n % 2]) for n in range(3, 8)]
    made = [write_texts(tiny_target, asked, 16, config, 3, quiet=True) for _ in range(2)]
    assert [text.tolist() for text, _ in made[0]] == [text.tolist() for text, _ in made[1]]
    assert len(made[0]) == 5
    for text, start in made[0]:
        assert text[:start].tolist() in [prompt.tolist() for prompt, _ in asked] and len(text) <= 16
        assert len(text) >= 15 or text[-1] == 1


@pytest.mark.parametrize(
    ("tokens", "first", "repeat", "start"),
    [
        ([1, 2, 3, 4, 5], 0, 2, 5),
        ([1, 2, 3, 1, 2, 3, 1, 2], 0, 3, 3),  # the second round begins at 3
        ([1, 2, 3, 1, 2, 4], 0, 3, 6),  # only two tokens are said over again
        ([1, 2, 3, 1, 2, 3, 7], 3, 3, 7),  # the prompt may be
        ([9, 9, 9, 9], 0, 2, 1),
        ([9, 9, 9, 9], 0, 0, 4),
        ([9], 0, 2, 1),
        ([], 0, 2, 0),
    ],
)
def test_where_a_text_goes_round_in_circles(tokens: list[int], first: int, repeat: int, start: int) -> None:
    assert repetition_start(tokens, first, repeat) == start


@pytest.mark.parametrize(
    "change",
    [
        {"count": -1},
        {"temperatures": ()},
        {"temperatures": (-1.0,)},
        {"min_prompt": 9, "max_prompt": 8},
        {"longest_repeat": -1},
    ],
)
def test_impossible_response_settings(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        ResponseConfig(**change)
