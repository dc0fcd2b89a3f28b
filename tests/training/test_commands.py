# SPDX-License-Identifier: Apache-2.0
"""The commands from start to end, with a target that trains in seconds."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from redrafter_training import __main__ as train_command
from redrafter_training import evaluate as evaluate_command
from redrafter_training.config.recipe import Budget
from redrafter_training.tiny_target import train as target_command
from redrafter_training.tiny_target.train import RECIPES, TargetConfig
from redrafter_vllm.model.drafter import Drafter

TINY = replace(
    RECIPES["short"],
    budget=Budget(4),
    vocab_size=300,
    hidden_size=32,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=16,
    intermediate_size=48,
    window=32,
    checkpoint_seconds=0.0,
)


@pytest.fixture(scope="module")
def made(corpus_root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    out = tmp_path_factory.mktemp("target")
    return out, target_command.make_target("tiny", TINY, out, corpus_root, quiet=True)


def test_target_is_stored_in_the_precision_of_its_evaluation(made: tuple[Path, dict[str, object]]) -> None:
    out, report = made
    assert report["steps"] == 4
    assert report["tokens"] == 4 * 4 * 32
    assert 0 < float(str(report["held_out_loss"])) < 7
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.dtype == torch.bfloat16
    assert model.config.tie_word_embeddings
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert model.config.bos_token_id == tokenizer.bos_token_id
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert AutoModelForCausalLM.from_pretrained(out / "checkpoint").config.vocab_size == 300


@pytest.mark.slow
def test_distilled_drafter_round_trip(
    made: tuple[Path, dict[str, object]], corpus_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = made
    train_command.main(
        f"--target {out} --data {corpus_root} --recipe short --max-steps 3 --batch-size 4 --beam-length 2"
        " --response-fraction 0.5 --responses.count 8 --device cpu --seed 5".split()
    )
    report = json.loads((out / "redrafter" / "training.json").read_text())
    assert report["steps"] == 3
    assert report["config"]["beam_length"] == 2
    assert report["held_out"]["4x2"]["tokens_per_step"] >= 1
    drafter = Drafter.from_pretrained(out / "redrafter")
    assert drafter.config.hidden_size == 32
    assert drafter.config.exit_dim == 64
    stored = load_file(out / "redrafter" / "model.safetensors")
    assert {t.dtype for t in stored.values()} == {torch.bfloat16}
    for name, tensor in drafter.state_dict().items():
        assert torch.equal(tensor, stored[name].float())

    capsys.readouterr()
    evaluate_command.main(
        f"--target {out} --corpus {corpus_root} --beam-width 1 2 --beam-length 2 --prompts 3 --new-tokens 8".split()
    )
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [r["beam_width"] for r in rows[:-1]] == [1, 2]
    assert all(len(r["acceptance_by_depth"]) == 2 for r in rows[:-1])
    assert rows[-1].keys() == report["metrics"].keys()
    assert {"redrafter1_kl", "redrafter2_top5"} < rows[-1].keys()


@pytest.mark.slow
def test_trimmed_drafter_from_text_and_labels(
    made: tuple[Path, dict[str, object]], corpus_root: Path, tmp_path: Path
) -> None:
    out, _ = made
    train_command.main(
        f"--target {out} --data {corpus_root} --recipe short --out {tmp_path} --max-steps 3 --beam-length 2"
        " --response-fraction 0.5 --responses.count 32"
        " --draft-vocab-size 60 --loss.label-share 0.25 --loss.labels data --loss.temperature 1.5"
        " --device cpu".split()
    )
    report = json.loads((tmp_path / "training.json").read_text())
    loss = {"label_share": 0.25, "labels": "data", "temperature": 1.5, "target_temperature": 0.2, "hidden_weight": 0.0}
    assert report["config"]["loss"] == loss
    assert 0.3 < report["data"]["draft_vocabulary_coverage"] < 1
    assert report["held_out"]["4x2"]["tokens_per_step"] >= 1
    drafter = Drafter.from_pretrained(tmp_path)
    assert drafter.config.draft_vocab_size == 60
    assert list(drafter.output.weight.shape) == [60, 64]
    assert drafter.draft_tokens is not None
    # The lowest ids are special tokens and control characters, which a choice by frequency leaves out.
    assert drafter.draft_tokens.max() > 100


def test_target_options(tmp_path: Path) -> None:
    recipe, config, out, corpus = target_command.parse_args(
        f"--out {tmp_path} --recipe long --max-seconds 7 --seed 3 --learning-rate 0.1".split()
    )
    assert (recipe, out, corpus) == ("long", tmp_path, None)
    assert config == replace(
        RECIPES["long"], budget=replace(RECIPES["long"].budget, max_seconds=7.0), seed=3, learning_rate=0.1
    )


@pytest.mark.parametrize("command", [target_command, train_command, evaluate_command])
def test_help(command: object, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        command.main(["--help"])  # type: ignore[attr-defined]
    assert caught.value.code == 0
    assert "--target" in capsys.readouterr().out or command is target_command


@pytest.mark.parametrize(
    "change", [{"num_kv_heads": 3}, {"window": 1}, {"batch_size": 0}, {"learning_rate": -1.0}, {"warmup": 0.0}]
)
def test_impossible_target_settings(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        TargetConfig(Budget(1), **change)
