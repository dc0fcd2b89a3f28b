# SPDX-License-Identifier: Apache-2.0
"""Evaluation on chat prompts: turns follow the target's responses, and figures add up over the categories."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from redrafter_training.data.chat_templates import resolve_chat_template
from redrafter_training.evaluate import main
from redrafter_training.responses.engine import Completion, Request
from redrafter_training.responses.transformers_engine import TransformersEngine
from redrafter_training.run.prompt_evaluation import acceptance_by_category, answer_prompts
from redrafter_training.target.model import TargetModel
from redrafter_training.trainer.acceptance import Drafting, measure
from redrafter_vllm.prompt_sets import EvaluationPrompt
from tests.models import HIDDEN, save_random_drafter, save_random_llama
from tests.oracles import random_drafter
from tests.training.chat_tokenizers import CHATML, byte_tokenizer

TOKENIZER = byte_tokenizer(CHATML)
PROMPTS = [
    EvaluationPrompt("1", "tea", ("Which?", "Sure?")),
    EvaluationPrompt("2", "cake", ("How?",)),
    EvaluationPrompt("3", "tea", ("W" * 200, "Never asked.")),
    EvaluationPrompt("4", "", ("Why so long a question?", "And?")),
]


class Numbered:
    """Says how long each prompt is."""

    def __init__(self) -> None:
        self.batches: list[list[Request]] = []

    def __call__(self, requests: Sequence[Request]) -> list[Completion]:
        self.batches.append(list(requests))
        said = [f"{len(request.prompt_ids)} tokens" for request in requests]
        return [Completion(tuple(TOKENIZER(text, add_special_tokens=False)["input_ids"]), True) for text in said]


def test_turns_follow_the_targets_own_responses() -> None:
    engine = Numbered()
    template = resolve_chat_template(TOKENIZER, None)
    answered, left_out = answer_prompts(
        engine, TOKENIZER, template, PROMPTS, new_tokens=20, window=150, temperature=0.7, seed=3
    )
    assert left_out == 2, "both turns of the one that is too long"
    assert [(a.category, a.turn) for a in answered] == [("cake", 0), ("tea", 0), ("", 0), ("tea", 1), ("", 1)]
    first = answered[1]
    asked = TOKENIZER.decode(first.text[: first.start])
    said = TOKENIZER.decode(first.text[first.start :])
    assert asked == "<|im_start|>user\nWhich?<|im_end|>\n<|im_start|>assistant\n" and said == f"{first.start} tokens"
    second = answered[3]
    assert TOKENIZER.decode(second.text[: second.start]) == (
        f"{asked}{said}<|im_end|>\n<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n"
    )
    requests = [request for batch in engine.batches for request in batch]
    assert {(r.max_tokens, r.temperature, r.seed) for r in requests} == {(20, 0.7, 3)}
    assert [len(batch) for batch in engine.batches] == [3, 2]
    assert all(batch == sorted(batch, key=lambda r: len(r.prompt_ids)) for batch in engine.batches)


def test_each_response_may_have_noise_of_its_own() -> None:
    engine = Numbered()
    template = resolve_chat_template(TOKENIZER, None)
    options = {"new_tokens": 20, "window": 150, "temperature": 0.7, "seed": 3, "seeds_each": True}
    answer_prompts(engine, TOKENIZER, template, PROMPTS, **options)
    first, second = ([request.seed for request in batch] for batch in engine.batches)
    assert len(set(first)) == 3 and len(set(second)) == 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "target"
    save_random_llama(path, vocab_size=len(TOKENIZER), bos_token_id=0, eos_token_id=1)
    TOKENIZER.save_pretrained(path)
    save_random_drafter(path / "redrafter", vocab_size=len(TOKENIZER))
    return path


class Reader(TargetModel):
    """Counts the texts that the target reads."""

    def __init__(self, target: TargetModel) -> None:
        super().__init__(target.model)
        self.reads = 0

    def hidden(self, *args: Any, **options: Any) -> Tensor:
        self.reads += 1
        return super().hidden(*args, **options)


def test_figures_of_groups_add_up(folder: Path) -> None:
    target = TargetModel(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))
    drafter = random_drafter(vocab_size=len(TOKENIZER), hidden_size=HIDDEN, exit_dim=2 * HIDDEN)
    template = resolve_chat_template(TOKENIZER, None)
    answered, _ = answer_prompts(TransformersEngine(target, 2), TOKENIZER, template, PROMPTS, new_tokens=20, window=500)
    shapes = [Drafting(8, 2, 16), Drafting(1, 3, 3)]
    reader = Reader(target)
    found = acceptance_by_category(reader, drafter, answered, shapes)
    assert reader.reads == len(answered), "once for both shapes"
    for shape, figures in zip(shapes, found, strict=True):
        assert list(figures) == ["all", "turn 1", "turn 2", "cake", "tea"]
        assert figures["all"] == measure(target, drafter, [(a.text, a.start) for a in answered], shape)
        assert figures["tea"] == measure(
            target, drafter, [(a.text, a.start) for a in answered if a.category == "tea"], shape
        )
        for name in ("steps", "tokens"):
            assert getattr(figures["turn 1"], name) + getattr(figures["turn 2"], name) == getattr(figures["all"], name)


def test_the_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps({"category": p.category, "turns": p.turns}) + "\n" for p in PROMPTS))
    sizes = ["--new-tokens", "12", "--beam-width", "1", "4", "--beam-length", "2"]
    arguments = ["--target", str(folder), *sizes, "--engine", "transformers"]
    assert main([*arguments, "--prompts", str(path)]) == 0
    chain, tree = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (chain["beam_width"], tree["beam_width"], tree["max_nodes"]) == (1, 4, 8)
    assert chain["prompts"] == str(path) and set(tree) >= {"all", "tea", "cake", "turn 1", "turn 2"}
    assert tree["all"]["tokens"] == chain["all"]["tokens"]
    assert tree["all"]["tokens_per_step"] >= chain["all"]["tokens_per_step"] >= 1
    assert len(tree["tea"]["acceptance_by_depth"]) == 2
    assert not (folder / "redrafter" / "README.md").exists()
    assert main([*arguments, "--prompts", str(path), "--card"]) == 0
    card = (folder / "redrafter" / "README.md").read_text()
    counted = (
        f"7 responses of the target in float32 with {chain['all']['tokens']:,} tokens behind their first ones, "
        "simulated in float32.\n"
    )
    assert f"\nmine.jsonl, greedy, up to 12 new tokens; {counted}" in card and str(tmp_path) not in card
    tea = [f"{row['tea']['tokens_per_step']:.2f}" for row in (chain, tree)]
    assert f"| tea | {tea[0]} | {tea[1]} |" in card and "| prompts | 1 x 2 in 2 | 4 x 2 in 8 |" in card
    first = chain["all"]["acceptance_by_depth"]
    assert f"| 1 x 2 in 2 | {first[0]:.0%} | {first[1]:.0%} |" in card
    assert "| target | unknown," in card, "nothing says where this drafter comes from"
    (folder / "redrafter" / "README.md").unlink()
    (folder / "redrafter" / "training.json").write_text('{"steps": 77, "target": "elsewhere"}')
    assert main([*arguments, "--prompts", str(path), "--card"]) == 0
    card = (folder / "redrafter" / "README.md").read_text()
    assert "| steps | 77 |" in card and "# Recurrent drafter for target\n" in card and "\n## Results\n" in card
    capsys.readouterr()
    assert main([*arguments, "--prompts", str(path), "--card", "--copies"]) == 0
    without, copies = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert without["all"] == chain["all"] and not without["prompt_lookup"] and copies["prompt_lookup"]
    assert copies["all"]["tokens"] == tree["all"]["tokens"]
    assert copies["all"]["tokens_per_step"] >= tree["all"]["tokens_per_step"]
    assert len(copies["all"]["acceptance_by_depth"]) == 8, "as long as the tree has nodes"
    card = (folder / "redrafter" / "README.md").read_text()
    assert "\nmine.jsonl, greedy, up to 12 new tokens; " in card
    assert "\nmine.jsonl, greedy, up to 12 new tokens, with copies of the text; " in card
    assert f"| 1 x 2 in 2 | {first[0]:.0%} | {first[1]:.0%} | – | – |" in card
    assert main([*arguments, "--prompts", "mt-bank"]) == 1
    assert "neither mt-bench nor spec-bench nor a readable file" in capsys.readouterr().err
