# SPDX-License-Identifier: Apache-2.0
"""Causes of a low acceptance: each is named where it is there, and only there."""

from pathlib import Path
from typing import Any

import pytest
import torch

from redrafter_training.evaluate import main
from redrafter_training.run.diagnosis import Measured, coverage, diagnose
from redrafter_training.trainer.acceptance import Acceptance, Drafting
from redrafter_vllm.utils.findings import Finding, Level
from tests.paths import ASSET

TARGET = {"weights": "w", "tokenizer": "t", "generation": "g"}
TRAINING = {
    "target_content": TARGET,
    "config": {"beam_length": 4},
    "held_out": {"1x4": {"tokens_per_step": 2.0}, "4x4": {"tokens_per_step": 3.0}},
    "training": {"agreement_by_depth": [0.6, 0.5]},
    "metrics": {"redrafter1_top1": 0.55},
}


def rate(tokens_per_step: float) -> Acceptance:
    return Acceptance(tokens_per_step, (0.5,), 10, int(10 * tokens_per_step))


def found(
    training: dict[str, Any] = TRAINING,
    target: dict[str, str] = TARGET,
    drafting: Drafting = Drafting(4, 4, 16),  # noqa: B008
    measured: float = 2.9,
    greedy: float | None = None,
    covered: float | None = None,
) -> dict[str, Finding]:
    sampled = None if greedy is None else rate(greedy)
    findings = diagnose(training, target, Measured(drafting, rate(measured), sampled, covered))
    return {finding.what: finding for finding in findings}


def levels(findings: dict[str, Finding]) -> dict[str, Level]:
    return {what: finding.level for what, finding in findings.items()}


def test_all_is_well() -> None:
    healthy = found(covered=0.99, measured=2.9, greedy=3.0)
    assert set(levels(healthy).values()) == {Level.OK}
    assert list(healthy) == ["tokens per step", "target", "text", "temperature", "draft vocabulary", "training"]
    assert healthy["tokens per step"].says == "2.90 in 10 steps, 4 beams of 4; 1 is no gain"


@pytest.mark.parametrize(
    ("changes", "what", "level", "says"),
    [
        ({"target": {**TARGET, "weights": "x"}}, "target", Level.PROBLEM, "other weights than"),
        ({"target": {**TARGET, "tokenizer": "x"}}, "target", Level.PROBLEM, "other tokenizer or chat template than"),
        ({"training": {**TRAINING, "target_content": None}}, "target", Level.NOTE, "does not say"),
        ({"drafting": Drafting(4, 5, 16)}, "beam length", Level.NOTE, "drafts 5 tokens deep, trained for 4"),
        # Of two accepted draft tokens three quarters are 1.5.
        ({"measured": 2.49}, "text", Level.PROBLEM, "2.49 tokens per step on these prompts, 3.00 on"),
        ({"drafting": Drafting(1, 4, 4), "measured": 1.74}, "text", Level.PROBLEM, "2.00 on the training's"),
        ({"drafting": Drafting(2, 4, 8)}, "text", Level.NOTE, "no figure"),
        ({"measured": 2.49, "greedy": 3.0}, "temperature", Level.NOTE, "2.49 tokens per step when sampled, 3.00"),
        ({"covered": 0.9}, "draft vocabulary", Level.PROBLEM, "90.0% of the responses' tokens"),
        ({"training": {**TRAINING, "metrics": {"redrafter1_top1": 0.45}}}, "training", Level.PROBLEM, "60% of the"),
    ],
)
def test_a_cause_is_named(changes: dict[str, Any], what: str, level: Level, says: str) -> None:
    findings = found(**changes)
    assert findings[what].level is level and says in findings[what].says
    assert level is not Level.PROBLEM or findings[what].remedy


def test_just_enough_is_no_cause() -> None:
    # 1 + 0.75 * 2 tokens per step; the text is judged by the greedy responses.
    assert found(measured=2.5)["text"].level is Level.OK
    both = found(measured=2.0, greedy=2.5)
    assert both["text"].level is Level.OK and both["temperature"].level is Level.NOTE


def test_a_drafter_of_which_nothing_is_known() -> None:
    assert levels(found(training={})) == {"tokens per step": Level.OK, "target": Level.NOTE, "text": Level.NOTE}


def test_coverage_counts_responses_alone() -> None:
    texts = [(torch.tensor([9, 9, 1, 2]), 2), (torch.tensor([9, 3, 4]), 1)]
    assert coverage(texts, torch.tensor([1, 3, 4])) == 0.75
    assert coverage(texts, None) is None


@pytest.mark.slow
def test_the_command(corpus_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = "--prompts 2 --new-tokens 16 --windows 1 --beam-width 1 4 --temperature 1 --diagnose"
    assert main(["--target", str(ASSET), "--corpus", str(corpus_root), *arguments.split()]) == 0
    printed = capsys.readouterr().out.partition("\n\n")[2]
    assert [line[8:].split("  ")[0] for line in printed.splitlines() if line[:2] in ("ok", "no", "PR")] == [
        "tokens per step",
        "target",
        "text",
        "temperature",
        "training",
    ]
    assert "4 beams of 4" in printed and "problem" in printed
