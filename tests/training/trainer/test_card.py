# SPDX-License-Identifier: Apache-2.0
"""The card of a trained drafter says what `training.json` says, and again after the evaluation."""

import json
from pathlib import Path
from typing import Any

import pytest

from redrafter_training.__main__ import main
from redrafter_training.trainer.card import write_training_card
from redrafter_training.trainer.export import export, update_report
from redrafter_training.trim import main as trim
from redrafter_vllm.checkpoint.card import add_results, card_metadata
from redrafter_vllm.checkpoint.config import DrafterConfig
from redrafter_vllm.model.drafter import Drafter
from tests.paths import ASSET
from tests.training.small_command import copy_target, small_command, write_data

REPORT: dict[str, Any] = {
    "command": "python -m redrafter_training --target ~/models/chat --data answers",
    "versions": {"python": "3.12", "torch": "2.9"},
    "target": "/home/someone/models/chat",
    "target_content": {"weights": "feed", "tokenizer": "beef"},
    "data": {
        "data": "/home/someone/answers",
        "regenerated": {
            "target": "/home/someone/models/chat",
            "data": "/home/someone/p.jsonl",
            "temperatures": [0, 0.8],
        },
        "commands": ["python -m redrafter_training.invent --count 9", "python -m redrafter_training.respond"],
        "training": 5000,
        "learned_tokens": 1500000,
        "looping": 2100,
        "held_out_prompts": 250,
        "draft_vocabulary_coverage": 0.9876,
    },
    "config": {"batch_size": 8, "window": 1024, "learning_rate": 0.01, "loss": {"labels": "target"}},
    "steps": 2000,
    "training": {"loss": 1.25},
    "metrics": {"redrafter1_kl": 0.5, "redrafter1_top1": 0.625, "redrafter2_kl": 0.75, "redrafter2_top1": 0.5},
    "held_out": {},
}
CONFIG = DrafterConfig(vocab_size=7, hidden_size=4, exit_dim=8, num_draft_layers=1)


def test_the_report_as_a_card(tmp_path: Path) -> None:
    export(Drafter(CONFIG), tmp_path / "out", REPORT)
    card = tmp_path / "out" / "README.md"
    text = card.read_text()
    assert text.count("someone") == 0, "no paths of the machine"
    assert card_metadata(card.parent)["base_model"] == "chat"
    for said in (
        "# Recurrent drafter for chat",
        "| fingerprint of its weights | `feed` |",
        "| source | answers |",
        "| texts | the target's own responses to p.jsonl |",
        "| temperatures | 0, 0.8 |",
        "| texts to train on | 5,000 |",
        "| tokens of the target's answers in them, which carry the loss | 1,500,000 |",
        "| prompts or documents held out | 250 |",
        "| texts cut where the answer repeats itself | 2,100 |",
        "| tokens within the draft vocabulary | 98.76% |",
        "| steps | 2,000 |",
        "| tokens seen | at most 16,384,000, 8,192 a step |",
        "| training loss at the end | 1.250 nats |",
        "| versions | python 3.12, torch 2.9 |",
        "| 1 | 0.500 | 62.5% |\n| 2 | 0.750 | 50.0% |",
        f"```\n{REPORT['data']['commands'][0]}\n{REPORT['data']['commands'][1]}\n{REPORT['command']}\n```",
    ):
        assert said in text
    assert "tokens per step |" not in text
    assert "vllm serve TARGET --speculative-model DIR" in text and "chat's folder as TARGET" in text
    figures = {"tokens_per_step": 2.5, "acceptance_by_depth": [0.75, 0.5], "steps": 8, "tokens": 20}
    update_report(tmp_path / "out", REPORT | {"held_out": {"4x2": figures}})
    assert "| 4x2 | 2.50 | 75% | 50% |" in card.read_text()
    assert json.loads((tmp_path / "out" / "training.json").read_text())["held_out"]["4x2"] == figures


def test_a_loss_with_distances_of_hidden_states_has_no_unit(tmp_path: Path) -> None:
    weighted = REPORT["config"] | {"loss": {"labels": "target", "hidden_weight": 30.0}}
    export(Drafter(CONFIG), tmp_path / "out", REPORT | {"config": weighted})
    assert "| training loss at the end | 1.250 |" in (tmp_path / "out" / "README.md").read_text()


def test_what_a_drafter_was_started_from(tmp_path: Path) -> None:
    start = {key: REPORT[key] for key in ("command", "data", "steps")} | {"name": "first"}
    second = REPORT | {"command": "python -m redrafter_training --init-from first", "started_from": start}
    export(Drafter(CONFIG), tmp_path / "out", second)
    text = (tmp_path / "out" / "README.md").read_text()
    facts = "first, 2,000 steps, 5,000 texts, 1,500,000 tokens of the target's answers"
    assert f"| started from | {facts} |" in text
    data = "\n".join(REPORT["data"]["commands"])
    assert f"```\n{data}\n{REPORT['command']}\n{data}\n{second['command']}\n```" in text


def test_results_belong_to_the_weights(tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(Drafter(CONFIG), out, REPORT | {"run": "a"})
    add_results(out, "mt-bench", "measured")
    export(Drafter(CONFIG), out, REPORT | {"run": "a"})
    assert "measured" not in (out / "README.md").read_text()


def test_reports_of_earlier_versions(tmp_path: Path) -> None:
    """Their metrics have other names, their targets no fingerprint."""
    for name in ("redrafter", "redrafter-slim"):
        report = json.loads((ASSET / name / "training.json").read_text())
        Drafter.from_pretrained(ASSET / name).save_pretrained(tmp_path / name)
        write_training_card(tmp_path / name, report)
        text = (tmp_path / name / "README.md").read_text()
        assert f"| parameters | {report['parameters']:,} |" in text and "beams x length" in text
    write_training_card(tmp_path / "redrafter", {})
    assert "target | unknown" in (tmp_path / "redrafter" / "README.md").read_text()


@pytest.mark.slow
def test_the_cards_of_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target, out = copy_target(tmp_path / "small-llama"), tmp_path / "out"
    (target / "README.md").write_text("---\nlicense: psf-2.0\n---\n")
    data = write_data(tmp_path / "chats.json")
    assert main(small_command(target, data, out, "--max-steps", "2", "--evaluate", "true")) == 0
    report = json.loads((out / "training.json").read_text())
    text = (out / "README.md").read_text()
    assert card_metadata(out)["license"] == "psf-2.0" and card_metadata(out)["base_model"] == "small-llama"
    assert report["target_content"]["weights"] in text and "| source | chats.json |" in text
    assert "of the kind that it was trained on, greedy, simulated" in text and "| steps | 2 |" in text
    assert f"{report['data']['learned_tokens']:,} |" in text and report["data"]["learned_tokens"] > 50
    outside = text.replace(report["command"], "")
    assert str(tmp_path) not in outside

    trimmed = tmp_path / "trimmed"
    arguments = [str(out), str(trimmed), "--target", str(target), "--data", str(data), "--chat-template", "vicuna"]
    assert trim([*arguments, "--draft-vocab-size", "20"]) == 0
    text = (trimmed / "README.md").read_text()
    assert "Trimmed from the drafter out." in text and "20 of the target's 2,048 tokens" in text
    assert "## Training before trimming" in text and "| to the most frequent tokens of | chats.json |" in text
    assert "python -m redrafter_training.trim" in text and "beams x length" not in text
    assert report["target_content"]["weights"] in text and card_metadata(trimmed)["license"] == "psf-2.0"
