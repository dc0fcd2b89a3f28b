# SPDX-License-Identifier: Apache-2.0
"""Responses sampled with transformers, and the texts that a training's first worker writes with them."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from redrafter_training.config.recipe import ResponseConfig
from redrafter_training.data.division import response_example
from redrafter_training.data.text_prompts import distinct
from redrafter_training.responses.engine import Request, continue_prompts
from redrafter_training.responses.own_texts import with_temperatures, write_texts
from redrafter_training.responses.repetition import repetition_start
from redrafter_training.responses.transformers_engine import TransformersEngine
from redrafter_training.target.model import TargetModel
from tests.models import HOSTILE_GENERATION
from tests.training.chat_tokenizers import byte_tokenizer


def test_greedy_continuations_of_mixed_lengths_are_the_targets_own(tiny_target: TargetModel) -> None:
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(3, 40, (n,), generator=generator) for n in (2, 5, 9)]
    for text, prompt in zip(continue_prompts(TransformersEngine(tiny_target), prompts, 12), prompts, strict=True):
        expected = prompt
        while len(expected) < len(prompt) + 12 and not (len(expected) > len(prompt) and expected[-1] == 1):
            best = tiny_target.model(input_ids=expected[None]).logits[0, -1].argmax()
            expected = torch.cat([expected, best[None]])
        assert text.tolist() == expected.tolist()


def test_greedy_is_the_top_1_token_whatever_the_generation_config_holds(
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
    engine = TransformersEngine(target)
    made = continue_prompts(engine, prompts, 12)
    assert len(made) == 3
    for text, prompt in zip(made, prompts, strict=True):
        expected = prompt
        while len(expected) < len(prompt) + 12 and not (len(expected) > len(prompt) and expected[-1] in (1, 2)):
            best = tiny_target.model(input_ids=expected[None]).logits[0, -1].argmax()
            expected = torch.cat([expected, best[None]])
        assert text.tolist() == expected.tolist()
    assert target.model.generation_config.repetition_penalty == 9.0  # it is the target's, and stays
    # Sampling follows the temperature alone: the generation config would leave three tokens to choose from.
    drawn = continue_prompts(engine, [torch.tensor([5])] * 300, 1, temperature=100.0)
    assert len({int(text[1]) for text in drawn}) > 30


def test_texts_are_seeded_and_end_by_themselves_or_with_the_window(tiny_target: TargetModel) -> None:
    prompts = [(torch.tensor([0, *range(n, n + 3 + n % 2)]), (0.0, 1.0)[n % 2]) for n in range(3, 8)]
    made = [write_texts(TransformersEngine(tiny_target, 2), prompts, 16, 0, seed) for seed in (3, 3, 4)]
    first, same, other = ([text.tolist() for text, _ in texts] for texts in made)
    assert first == same != other
    assert len(made[0]) == 5
    for text, start in made[0]:
        assert text[:start].tolist() in [prompt.tolist() for prompt, _ in prompts] and len(text) <= 16
        assert len(text) >= 15 or text[-1] == 1
    assert write_texts(TransformersEngine(tiny_target), [], 16, 0, 3) == []


def test_requests_of_one_call_have_one_seed(tiny_target: TargetModel) -> None:
    requests = [Request((3, 4), 2, 1.0, seed) for seed in (1, 2)]
    with pytest.raises(ValueError, match="the same one"):
        TransformersEngine(tiny_target)(requests)


def test_written_texts_are_the_targets_own(tiny_target: TargetModel) -> None:
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(3, 40, (n,), generator=generator) for n in (3, 5, 4)]
    greedy = [(prompt, 0.0) for prompt in (*prompts, prompts[0])]
    texts = write_texts(TransformersEngine(tiny_target, 2), greedy, 14, 32, 0)
    assert sorted(text[:start].tolist() for text, start in texts) == sorted(prompt.tolist() for prompt in prompts)
    for text, start in texts:
        for place in range(start, len(text)):
            assert text[place] == tiny_target.model(input_ids=text[None, :place]).logits[0, -1].argmax()
        made = response_example(text, start, byte_tokenizer())
        assert made.loss_mask.tolist() == [place >= start for place in range(len(text))]


def test_written_texts_end_before_they_repeat_themselves(tiny_target: TargetModel) -> None:
    tiny_target.model.generation_config.eos_token_id = 39  # which this target does not sample
    prompts = [(torch.arange(n, n + 4), 0.0) for n in (3, 9, 20)]
    engine = TransformersEngine(tiny_target, 3)
    whole, cut = (write_texts(engine, prompts, 48, repeat, 0) for repeat in (0, 2))
    assert any(len(text) < len(long) for (text, _), (long, _) in zip(cut, whole, strict=True))
    for (text, start), (long, _) in zip(cut, whole, strict=True):
        assert text.tolist() == long[: start + repetition_start(long[start:].tolist(), 2)].tolist()


def test_a_completion_has_ended_when_its_last_token_is_an_end_token(tiny_target: TargetModel) -> None:
    prompt = torch.arange(3, 7)
    (text,) = continue_prompts(TransformersEngine(tiny_target), [prompt], 6)
    tiny_target.model.generation_config.eos_token_id = end = int(text[6])
    requests = [Request(tuple(prompt.tolist()), length) for length in (6, 1)]
    ended, cut = (TransformersEngine(tiny_target)([request])[0] for request in requests)
    assert ended.ended and ended.token_ids[-1] == end and end not in ended.token_ids[:-1]
    assert cut.ended == (cut.token_ids == (end,)) and len(cut.token_ids) == 1


@pytest.mark.parametrize(
    ("tokens", "repeat", "start"),
    [
        ([1, 2, 3, 4, 5], 2, 5),
        ([1, 2, 3, 1, 2, 3, 1, 2], 3, 3),  # the second round begins at 3
        ([1, 2, 3, 1, 2, 4], 3, 6),  # only two tokens are repeated
        ([1, 2, 3, 7, 9, 2, 3, 7], 3, 5),  # not at once
        ([9, 9, 9, 9], 2, 1),
        ([9, 9, 9, 9], 0, 4),
        ([9], 2, 1),
        ([], 2, 0),
    ],
)
def test_where_a_response_repeats_itself(tokens: list[int], repeat: int, start: int) -> None:
    assert repetition_start(tokens, repeat) == start


def test_no_prompt_is_answered_greedily_twice() -> None:
    one, two = torch.tensor([1, 2]), torch.tensor([3])
    greedy = with_temperatures([one, two], ResponseConfig(count=9, temperatures=(0.0,), batch_size=2))
    assert [(prompt.tolist(), temperature) for prompt, temperature in greedy] == [([1, 2], 0.0), ([3], 0.0)]
    mixed = with_temperatures([one, two], ResponseConfig(count=6, temperatures=(0.0, 0.8), batch_size=2))
    # The second pass is sampled, the third would be greedy again.
    assert [(len(prompt), temperature) for prompt, temperature in mixed] == [(2, 0.0), (1, 0.0), (2, 0.8), (1, 0.8)]
    many = [torch.tensor([n]) for n in range(6)]
    turns = with_temperatures(many, ResponseConfig(count=6, temperatures=(0.0, 0.0, 0.8), batch_size=2))
    assert [temperature for _, temperature in turns] == [0.0, 0.0, 0.0, 0.0, 0.8, 0.8]
    assert with_temperatures([], ResponseConfig()) == []
    assert [prompt.tolist() for prompt in distinct([one, two, one])] == [[1, 2], [3]]
