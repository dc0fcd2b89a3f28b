# SPDX-License-Identifier: Apache-2.0
"""The demonstration's report."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.demo.report import as_json, evaluate, print_tables, with_relative_paths
from benchmarks.record import store
from tests.benchmarks.evidence import GREEDY, SEEDED, make_evidence


def test_figures() -> None:
    figures = evaluate(make_evidence())
    assert figures.failures == []
    assert figures.tokens_per_step == pytest.approx((3 + 1 + 2) / 3)
    assert figures.acceptance_by_depth == [2 / 3, 1 / 3, 0.0, 0.0]


def test_keys_and_ratios() -> None:
    evidence = make_evidence()
    report = as_json(evidence, evaluate(evidence), ["--prompts", "2"])
    assert report["identical_greedy"] is True
    assert report["identical_seeded"] is True
    assert report["tokens_per_step"] == 2.0
    assert len(report["acceptance_by_depth"]) == 4
    assert report["speedup"] == pytest.approx(4.0)
    assert report["speedup_same_runner"] == pytest.approx(2.0)
    assert {"python", "torch", "vllm", "triton", "transformers", "redrafter_vllm"} <= report["versions"].keys()
    assert "unknown" not in report["versions"].values()
    assert report["prompts"] == ["a", "b"]
    assert report["command"] == "python -m benchmarks.demo --prompts 2"
    json.dumps(report)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"greedy": [GREEDY[0], [5, 5, 4]]}, "greedy outputs differ"),
        ({"seeded": [SEEDED[0][:-1], SEEDED[1]]}, "seeded outputs differ"),
        ({"served": [GREEDY[1], GREEDY[0]]}, "the server's outputs differ"),
        ({"steps": [[1, 2, 1, 1], [1, 1, 1]]}, "tokens per step are 1.20, below 1.7"),
    ],
)
def test_each_failure_has_a_message(changed: dict[str, list[list[int]]], message: str) -> None:
    evidence = make_evidence(**changed)
    figures = evaluate(evidence)
    assert len(figures.failures) == 1
    assert figures.failures[0].startswith(message)
    assert as_json(evidence, figures, [])["failures"] == figures.failures


def test_tables_show_the_first_difference() -> None:
    evidence = make_evidence(greedy=[GREEDY[0], [5, 5, 4]])
    console = Console(width=300, record=True)
    print_tables(evidence, evaluate(evidence), console)
    text = console.export_text()
    assert "first difference in request 1 at token 2" in text
    assert "1: 67%" in text
    assert "wall-clock here says little" in text


def test_stored_paths_are_relative() -> None:
    evidence = with_relative_paths(make_evidence(), Path("/repository"))
    assert evidence.target == Path("target")
    assert evidence.drafter == Path("/elsewhere/drafter")
    assert evidence.served.command == [".venv/bin/vllm", "serve", "target"]


def test_a_report_is_stored_without_partial_files(tmp_path: Path) -> None:
    store(tmp_path / "report.json", {"a": 1})
    assert json.loads((tmp_path / "report.json").read_text()) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["report.json"]
