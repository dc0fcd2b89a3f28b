# SPDX-License-Identifier: Apache-2.0
"""The comparison on chat prompts: definitions, tables, agreement, options. Engines are in tests/engine."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from benchmarks.serving.chat import __main__ as command
from benchmarks.serving.chat import comparison, identity, report
from benchmarks.serving.chat.comparison import AGREEMENT, Comparison, agreed, agreement, figures_of
from benchmarks.serving.chat.methods import Method, Outcome, Serving
from benchmarks.serving.chat.options import Options, parse_args
from benchmarks.serving.chat.questions import Asked, Question, chosen_prompts, first_turns, group_names, passes_of
from redrafter_vllm.bench.compare import compare
from redrafter_vllm.bench.kinds import plain
from redrafter_vllm.config import DraftingConfig
from redrafter_vllm.predict.trees import parse_tree, tree_name
from tests.paths import ASSET
from tests.training.chat_tokenizers import byte_tokenizer

QUESTIONS = [
    Question("tea", 0, (5, 6)),
    Question("", 0, (7,)),
    Question("cake", 0, (8,)),
    Question("tea", 1, (5, 6, 1, 2)),
]


def serving(**given: Any) -> Serving:
    common: dict[str, Any] = {"window": 300, "trees": (DraftingConfig(4, 4), DraftingConfig(1, 3))}
    return Serving(ASSET, ASSET / "redrafter", **(common | given))


def test_figures_are_those_of_the_group_s_requests() -> None:
    # Steps behind the prompt's: 3 + 1; none; 2 and a last one that max_tokens cuts to 1; 5.
    steps = [[1, 3, 1], [1], [1, 2, 1], [1, 5]]
    found = figures_of(QUESTIONS, steps, depth=4)
    assert found["tokens_per_step"] == {
        "all": 12 / 5,
        "turn 1": 7 / 4,
        "turn 2": 5.0,
        "tea": 9 / 3,
        "cake": 3 / 2,
    }
    assert found["acceptance_by_depth"] == [3 / 5, 2 / 5, 1 / 5, 1 / 5]
    assert (found["steps"], found["tokens"]) == (5, 16)


def test_a_group_without_a_second_token_has_no_figure() -> None:
    found = figures_of(QUESTIONS[:3], [[1, 2], [1, 2], [1]], depth=1)
    assert found["tokens_per_step"] == {"all": 2.0, "turn 1": 2.0, "tea": 2.0, "cake": None}


class Words:
    """A reader with a token for each word."""

    def prompt(self, turns: Any) -> list[int]:
        return [len(word) for word in turns[0].content.split()]


def test_first_turns_take_the_categories_in_turns(tmp_path: Path) -> None:
    source = tmp_path / "prompts.jsonl"
    prompts = [
        {"category": "tea", "turns": ["a bb", "never asked"]},
        {"category": "tea", "turns": ["ccc dddd"]},
        {"category": "tea", "turns": ["this one has too many words"]},
        {"category": "cake", "turns": ["eeeee"]},
    ]
    source.write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    reader: Any = Words()
    assert first_turns(reader, str(source), 3, max_tokens=2) == [[1, 2], [5], [3, 4]]
    assert first_turns(reader, str(source), 2, max_tokens=2) == [[1, 2], [5]]
    with pytest.raises(ValueError, match="has 3 first turns of at most 2 tokens, and 4 are needed"):
        first_turns(reader, str(source), 4, max_tokens=2)


def test_groups_are_all_then_turns_then_categories() -> None:
    assert group_names(QUESTIONS) == ["all", "turn 1", "turn 2", "tea", "cake"]


def test_every_turn_is_a_pass() -> None:
    first, second = passes_of(QUESTIONS, 9, 0.7, (2,))
    assert (first.prompts, second.prompts) == ([[5, 6], [7], [8]], [[5, 6, 1, 2]])
    assert (first.max_tokens, first.temperature, first.end_tokens) == (9, 0.7, (2,))


def test_passes_are_joined_in_the_questions_order() -> None:
    passes = [
        {"tokens": [[1, 2], [3]], "steps": [[1, 1], [1]], "seconds": 1.5},
        {"tokens": [[4, 5, 6]], "steps": [[1, 2]], "seconds": 0.5},
    ]
    joined = Outcome.of(passes)
    assert joined == Outcome([[1, 2], [3], [4, 5, 6]], [[1, 1], [1], [1, 2]], 2.0)
    assert joined.tokens_per_second == 3.0


@pytest.mark.parametrize(
    ("text", "expected", "name"),
    [
        ("4x4", DraftingConfig(4, 4, 16, adaptive=False, prompt_lookup=False), "4x4, 16 nodes"),
        ("8x4", DraftingConfig(8, 4, 16, adaptive=False, prompt_lookup=False), "8x4, 16 nodes"),
        ("8x4:32", DraftingConfig(8, 4, 32, adaptive=False, prompt_lookup=False), "8x4, 32 nodes"),
        ("1x3", DraftingConfig(1, 3, 3, adaptive=False, prompt_lookup=False), "1x3, 3 nodes"),
        ("4x4~", DraftingConfig(4, 4, 16, adaptive=True, prompt_lookup=False), "4x4, up to 16 nodes"),
        ("8x4:32~", DraftingConfig(8, 4, 32, adaptive=True, prompt_lookup=False), "8x4, up to 32 nodes"),
        ("4x4+", DraftingConfig(4, 4, 16, adaptive=False), "4x4, 16 nodes, copies"),
        ("4x4:7+~", DraftingConfig(4, 4, 7, adaptive=True), "4x4, up to 7 nodes, copies"),
    ],
)
def test_trees(text: str, expected: DraftingConfig, name: str) -> None:
    assert parse_tree(text) == expected
    assert tree_name(expected) == name


@pytest.mark.parametrize(
    "text", ["", "4", "4x", "x4", "4x4:", "4x4:~", "~4x4", "4x4:a", "4x4~+", "4 x 4", "-1x4", "99x4"]
)
def test_what_is_no_tree(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no tree|beam_width"):
        parse_tree(text)


def test_mt_bench_by_category() -> None:
    chosen = chosen_prompts("mt-bench", (), 2)
    assert len(chosen) == 16 and all(len(prompt.turns) == 2 for prompt in chosen)
    assert {prompt.category for prompt in chosen_prompts("spec-bench", ("rag", "qa"), 0)} == {"rag", "qa"}
    assert len(chosen_prompts("mt-bench", (), 0)) == 80
    with pytest.raises(ValueError, match=r"no category 'poetry'; it has writing, roleplay"):
        chosen_prompts("mt-bench", ("math", "poetry"), 1)


def test_engines_have_room_for_two_trees_behind_the_window() -> None:
    # The target takes 2,048 tokens.
    assert serving().max_model_len == 300 + 2 * 17
    assert serving(window=2040).max_model_len == 2048


def test_runner_v1_computes_whole_prompts_on_a_cpu() -> None:
    ours, installed = serving().redrafters()[0], serving().plain()
    assert serving().job(installed, [], 8).engine["enable_chunked_prefill"] is False
    job = serving(batch=3, eager=True, dtype="float32").job(ours, [[1]], 8)
    assert "enable_chunked_prefill" not in job.engine
    assert (job.engine["max_num_seqs"], job.engine["enforce_eager"], job.engine["dtype"]) == (3, True, "float32")
    # Of the asset a token takes 2 (keys and values) x 4 layers x 2 heads x 64 numbers of 4 bytes.
    assert job.engine["kv_cache_memory_bytes"] >= 3 * (300 + 2 * 17) * 4096
    assert job.speculative == {
        "method": "redrafter",
        "model": str(ASSET / "redrafter"),
        "beam_width": 4,
        "beam_length": 4,
        "num_speculative_tokens": 16,
        "project_embedding": False,
        "prompt_lookup": True,
    }


def test_peers_run_on_vllm_as_installed() -> None:
    lookup, suffix = serving(lookup=(1, 3)).peers(["lookup", "suffix"])
    assert lookup.kind.speculative == {
        "method": "ngram",
        "num_speculative_tokens": 4,
        "prompt_lookup_min": 1,
        "prompt_lookup_max": 3,
    }
    assert suffix.kind.speculative == {"method": "suffix"} and suffix.learns and not lookup.learns
    assert lookup.kind.env == suffix.kind.env == serving().plain().kind.env
    assert lookup.missing is None
    absent = Method("x", plain(), package="no-such-package")
    assert absent.missing == "the package no-such-package, which vLLM needs for it, is not installed"


@pytest.mark.parametrize(("device", "asked"), [("cpu", [0.0]), ("cuda", [0.0, 0.7])])
def test_peers_are_asked_greedily_alone_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, device: str, asked: list[float]
) -> None:
    """vLLM's CPU build leaves their logits undefined at a temperature; without a greedy request no engine starts."""
    template = tmp_path / "template.jinja"
    template.write_text("{% for message in messages %}{{ message.content }}{% endfor %}")
    made = Comparison(Options(serving(device=device), peers=("lookup",), questions=1, chat_template=str(template)))
    made.asked = Asked(QUESTIONS, [], 0)
    engines: list[Method] = []

    @contextmanager
    def started(serving: Serving, method: Method, *_: Any) -> Iterator[Any]:
        engines.append(method)
        yield SimpleNamespace(runner="V1")

    monkeypatch.setattr(comparison, "started", started)
    monkeypatch.setattr(made, "_take", lambda engine, temperature: temperature)
    (lookup,) = made.peers
    made.measure(lookup)
    assert made.outcomes[lookup.name] == {temperature: temperature for temperature in asked}
    assert engines == [lookup] and (made.greedy_alone == {}) == (device == "cuda")
    made.options = replace(made.options, temperatures=(0.7,))
    made.outcomes.clear()
    made.measure(lookup)
    assert list(made.outcomes) == ([] if device == "cpu" else [lookup.name])
    assert len(engines) == (1 if device == "cpu" else 2)


def row(method: str, tree: str | None, value: float, *, simulated: bool = False, temperature: float = 0.0) -> Any:
    return {
        "temperature": temperature,
        "tree": tree,
        "method": method,
        "simulated": simulated,
        "tokens_per_step": {"all": value, "turn 1": value, "tea": None},
        "acceptance_by_depth": [0.5, 0.25],
        "steps": 100,
        "tokens": 200,
        "tokens_per_second": None if simulated else 12.34,
    }


def example(simulated: float, *, heated: float = 2.0) -> dict[str, Any]:
    tree = "2x2, 4 nodes"
    rows = [
        row("vLLM as installed", None, 1.0),
        row("ReDrafter, simulated", tree, simulated, simulated=True),
        row("ReDrafter, served", tree, 2.0),
        row("ReDrafter, simulated", tree, heated, simulated=True, temperature=0.7),
        row("ReDrafter, served", tree, 2.0, temperature=0.7),
    ]
    return {
        "config": {
            "trees": [{"beam_length": 2}],
            "temperatures": [0.0, 0.7],
            "prompts": "mt-bench",
            "max_tokens": 8,
            "batch": 8,
            "dtype": "float32",
            "check": True,
        },
        "groups": ["all", "turn 1", "tea"],
        "requests": {"all": 3, "turn 1": 3, "tea": 1},
        "left_out": 2,
        "runners": {},
        "failed": {"suffix decoding": "the package is not installed\nand more"},
        "greedy_alone": {},
        "results": rows,
        "agreement": agreement(rows, [tree]),
    }


@pytest.mark.parametrize(
    ("simulated", "expected"),
    [(2.0, True), (2.0 * (1 + AGREEMENT) - 1e-6, True), (1.93, False), (2.07, False)],
)
def test_served_and_simulated_must_agree(simulated: float, expected: bool) -> None:
    found = example(simulated, heated=9.0)  # at another temperature it is only shown
    assert agreed(found) is expected
    assert command.passed(found) is expected
    assert command.passed(found | {"config": found["config"] | {"check": False}})


def test_a_tree_that_was_not_served_does_not_agree() -> None:
    found = example(2.0)
    found["config"]["trees"].append({"beam_length": 1})
    assert not agreed(found)
    found["failed"]["ReDrafter, served, 1x1, 1 nodes"] = "no memory"
    assert not command.passed(found | {"config": found["config"] | {"check": False}})


def test_tables_and_files(tmp_path: Path) -> None:
    found = example(1.0)
    console = Console(width=200, record=True, file=StringIO())
    report.show(found, console)
    shown = console.export_text()
    assert "simulated differs from served by -50.00%, NOT within 3%" in shown
    assert "2 turns are left out" in shown and "prompt lookup" not in shown
    found["results"].append(row("prompt lookup, 4 tokens", None, 1.6))
    assert "2x2, 4 nodes, greedy: 1.25 times the tokens per step of prompt lookup" in report.remarks(found)
    found["greedy_alone"] = {"prompt lookup, 4 tokens": "why"}
    assert "prompt lookup, 4 tokens, at a temperature, has no figures: why" in report.remarks(found)
    written = report.store(found, tmp_path / "chat.json")
    assert [path.name for path in written] == ["chat.md", "chat.png"] and all(path.stat().st_size for path in written)
    lines = written[0].read_text().splitlines()
    methods = "vLLM as installed | ReDrafter, served | prompt lookup, 4 tokens | suffix decoding"
    assert lines.count(f"| prompts | {methods} |") == 1
    assert "| all | 1.00 | 2.00 | 1.60 | – |" in lines and "| tea | – | – | – | – |" in lines
    assert "| method | 1 | 2 | tokens/s |" in lines
    assert "| ReDrafter, served | 0.50 | 0.25 | 12.3 |" in lines
    assert "| ReDrafter, simulated | 0.50 | 0.25 | – |" in lines
    assert "- suffix decoding has no figures: the package is not installed" in lines


def test_the_first_difference_in_words() -> None:
    tokenizer = byte_tokenizer()
    plain_, ours = ([list(tokenizer(text)["input_ids"]) for text in texts] for texts in (["ab", "cde"], ["ab", "cd"]))
    found = compare(plain_, ours)
    said = identity.difference(QUESTIONS, found, plain_, ours, tokenizer)
    token = plain_[1][2]
    assert said == (f"request 1 (no category, turn 1) at token 2, after 'cd': plain {token} ('e'), ReDrafter has ended")
    assert identity.difference(QUESTIONS, compare(ours, ours), ours, ours, tokenizer) is None


def test_options_from_the_command_line(tmp_path: Path) -> None:
    prompts = tmp_path / "mine.jsonl"
    given = ["--target", str(ASSET), "--trees", "1x3 2x2:3", "--lookup", "1", "2", "--window", "300"]
    parsed = parse_args([*given, "--peers", "--prompts", str(prompts), "--questions", "0", "--eager"])
    assert parsed.serving.trees == (
        DraftingConfig(1, 3, 3, adaptive=False, prompt_lookup=False),
        DraftingConfig(2, 2, 3, adaptive=False, prompt_lookup=False),
    )
    assert (parsed.serving.lookup, parsed.serving.window, parsed.serving.dtype) == ((1, 2), 300, "bfloat16")
    assert (parsed.peers, parsed.name, parsed.serving.drafter) == ((), "chat-mine", ASSET / "redrafter")
    strict = parse_args(["--target", str(ASSET), "--identity"])
    assert (strict.serving.dtype, strict.name) == ("float32", "chat-identity-mt-bench")
    assert strict.serving.trees == (DraftingConfig(4, 4, 16, adaptive=False, prompt_lookup=False),)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--trees", "4x"], "no tree"),
        (["--questions", "-1"], "questions must be"),
        (["--max-tokens", "1"], "max_tokens must be"),
        (["--window", "256"], "no room for 256 tokens"),
        (["--temperatures", "0", "0"], "temperatures must be different"),
        (["--lookup", "3", "2"], "shortest <= longest"),
        (["--batch", "0"], "batch must be"),
        (["--peers", "eagle"], "invalid choice"),
    ],
)
def test_impossible_options_are_refused(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_args(["--target", str(ASSET), *flags])
    assert message in capsys.readouterr().err


def test_prompts_are_read_before_an_engine_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = tmp_path / "mine.jsonl"
    prompts.write_text(json.dumps({"turns": []}) + "\n")
    assert command.main(["--target", str(ASSET), "--prompts", str(prompts), "--out", str(tmp_path)]) == 1
    assert "mine.jsonl:1 has another form" in capsys.readouterr().err
