# SPDX-License-Identifier: Apache-2.0
"""The demonstration's report."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.demo.report import Evidence, as_json, evaluate, print_answer, print_next_steps, print_tables
from benchmarks.record import store
from tests.benchmarks.evidence import GREEDY, PROMPTS, SEEDED, make_evidence

ROOT = Path("/repository")


def test_figures() -> None:
    figures = evaluate(make_evidence())
    assert figures.failures == []
    assert figures.tokens_per_step == pytest.approx((3 + 1 + 2) / 3)
    # Of the three steps behind the prompts' two emit a draft and more, one a second draft.
    assert figures.acceptance_by_depth == pytest.approx([2 / 3, 1 / 3])


def test_keys_and_ratios() -> None:
    evidence = make_evidence()
    report = as_json(evidence, evaluate(evidence), ["--prompts", "2"], ROOT)
    assert report["identical_greedy"] is True
    assert report["identical_seeded"] is True
    assert report["tokens_per_step"] == 2.0
    assert len(report["acceptance_by_depth"]) == 2
    (speeds,) = report["speeds"]
    # Plain vLLM emits 2 tokens a second, ReDrafter 4, 8 and 2.
    assert (speeds["speedup"], speeds["speedup_by_round"]) == (2.0, [2.0, 4.0, 1.0])
    assert speeds["target"] == "target" and speeds["in_turns"]
    assert speeds["parameters"] is None  # there is no such folder
    assert [(row["configuration"], row["tokens_per_second"]["median"]) for row in speeds["engines"]] == [
        ("vLLM as installed", 2.0),
        ("ReDrafter", 4.0),
    ]
    assert [row["tokens_per_step"] for row in speeds["engines"]] == [1.0, 2.0]
    assert {"python", "torch", "vllm", "triton", "transformers", "redrafter_vllm"} <= report["versions"].keys()
    assert "unknown" not in report["versions"].values()
    assert report["prompts"] == PROMPTS
    assert report["command"] == "python -m benchmarks.demo --prompts 2"
    json.dumps(report)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"greedy": [GREEDY[0], [5, 5, 4]]}, "greedy answers differ"),
        ({"seeded": [SEEDED[0][:-1], SEEDED[1]]}, "seeded answers differ"),
        ({"greedy": [GREEDY[1], GREEDY[0]]}, "greedy answers differ"),
    ],
)
def test_each_failure_has_a_message(changed: dict[str, list[list[int]]], message: str) -> None:
    evidence = make_evidence(**changed)
    figures = evaluate(evidence)
    assert len(figures.failures) == 1
    assert figures.failures[0].startswith(message)
    assert as_json(evidence, figures, [], ROOT)["failures"] == figures.failures


def printed(evidence: Evidence) -> str:
    console = Console(width=300, record=True)
    print_tables(evidence, evaluate(evidence), console)
    return console.export_text()


def test_tables_show_the_first_difference() -> None:
    text = printed(make_evidence(greedy=[GREEDY[0], [5, 5, 4]]))
    assert "first difference in request 1 at token 2" in text
    assert "1: 67%" in text


def test_a_gain_is_shown_with_its_range_and_without_excuses() -> None:
    text = printed(make_evidence(seconds=(2.0, 1.0, 4.0)))
    assert "2.00 times" in text and "1.00 to 4.00 in 3" in text
    assert "Slower" not in text


def test_a_loss_is_shown_and_explained() -> None:
    text = printed(make_evidence(seconds=(5.0, 2.0, 8.0)))
    assert "0.80 times" in text
    assert "Slower with ReDrafter: target. On a small target, above all on a CPU, a step's further rows" in text


def test_passes_that_were_not_in_turns_say_so() -> None:
    text = printed(make_evidence(seconds=(2.0,), together=False))
    assert "2.00 times" in text and "one pass each, not in turns" in text


def test_stored_paths_are_relative() -> None:
    evidence = make_evidence()
    report = as_json(evidence, evaluate(evidence), [], ROOT)
    assert report["config"]["target"] == "target"
    assert report["config"]["drafter"] == "/elsewhere/drafter"
    assert report["server"]["command"] == ".venv/bin/vllm serve target"


class Letters:
    """A tokenizer whose token n is the n-th letter."""

    def decode(self, tokens: list[int]) -> str:
        return "".join(chr(ord("A") + token) for token in tokens)


def test_the_answer_with_the_median_saving_is_shown() -> None:
    # Steps per token are 3/5 and 2/3; the second of two is the upper median. Its only draft is its second token.
    console = Console(width=300, record=True, color_system=None)
    print_answer(make_evidence(), Letters(), console)
    assert console.export_text().endswith("b\n\nF«F»F\n")


def test_the_end_says_how_to_serve() -> None:
    console = Console(width=300, record=True)
    print_next_steps(make_evidence().pair, console)
    assert "vllm serve /repository/target --speculative-model /elsewhere/drafter\n" in console.export_text()


def test_a_report_is_stored_without_partial_files(tmp_path: Path) -> None:
    store(tmp_path / "report.json", {"a": 1})
    assert json.loads((tmp_path / "report.json").read_text()) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["report.json"]
