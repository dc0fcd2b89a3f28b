# SPDX-License-Identifier: Apache-2.0
"""The benchmarks on chat prompts, on engines of this session instead of one process each."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from benchmarks.serving import context_length
from benchmarks.serving.chat import comparison, identity
from benchmarks.serving.chat.methods import Serving
from benchmarks.serving.chat.options import Options
from redrafter_vllm.bench.engine import Finished, Job, Request
from redrafter_vllm.config import DraftingConfig
from tests.engine.conftest import MakeEngine

PROMPTS = [
    {"category": "files", "turns": ["Write a function that reads a file.", "Now one that closes it."]},
    {"category": "sums", "turns": ["def add(a, b):"]},
]
TREE = DraftingConfig(2, 3, 5)
NEW_TOKENS = 24

pytestmark = pytest.mark.engine


@pytest.fixture
def in_process(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """Engines of the session answer; the jobs that asked for them."""
    jobs: list[Job] = []

    class Answering:
        def __init__(self, job: Job, log: Path) -> None:
            self.job = job
            self.llm = make_engine(Path(job.target), job.speculative, disable_log_stats=False)
            jobs.append(job)

        def __enter__(self) -> "Answering":
            return self

        def __exit__(self, *_: object) -> None: ...

        def wait_until_ready(self) -> str:
            return "V2"

        def take(self, request: Request, finished: Finished) -> dict[str, Any]:
            return request.answer(self.llm, self.job, finished)

    monkeypatch.setattr(comparison, "EngineProcess", Answering)
    return jobs


@pytest.fixture
def make_options(asset: Path, tmp_path: Path) -> Callable[..., Options]:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(prompt) + "\n" for prompt in PROMPTS))

    def make(**given: Any) -> Options:
        serving = Serving(asset, asset / "redrafter", 300, (TREE,), dtype="float32", eager=True)
        return Options(serving, prompts=str(prompts), peers=(), max_tokens=NEW_TOKENS, chat_template="vicuna", **given)

    return make


def test_served_and_simulated_steps_are_the_same(in_process: list[Job], make_options: Callable[..., Options]) -> None:
    report = comparison.run(make_options())
    assert [job.speculative is None for job in in_process] == [True, False], "one engine for each method"
    assert report["requests"] == {"all": 3, "turn 1": 2, "turn 2": 1, "files": 2, "sums": 1}
    assert report["failed"] == {} and report["left_out"] == 0
    for temperature in (0.0, 0.7):
        plain, simulated, served = (row for row in report["results"] if row["temperature"] == temperature)
        assert plain["tokens_per_step"] == dict.fromkeys(report["groups"], 1.0)
        assert plain["acceptance_by_depth"] == [0.0] * TREE.max_depth
        # In float32 the walk finds the very steps of the engine, the one that max_tokens cuts included.
        for key in ("tokens_per_step", "acceptance_by_depth", "steps", "tokens"):
            assert simulated[key] == served[key]
        assert served["tokens_per_step"]["all"] > 1.0
        assert served["same_requests"] == 3 and served["tokens"] == plain["tokens"]
    assert comparison.agreed(report)


def test_requests_are_identical_and_a_difference_is_shown(
    in_process: list[Job], make_options: Callable[..., Options], monkeypatch: pytest.MonkeyPatch
) -> None:
    report = identity.run(make_options(identity=True))
    assert identity.identical(report)
    assert [(row["batch"], row["temperature"], row["same_requests"]) for row in report["results"]] == [
        (8, 0.0, 3),
        (8, 0.7, 3),
        (1, 0.0, 3),
        (1, 0.7, 3),
    ]
    assert {job.engine["max_num_seqs"] for job in in_process} == {1, 8}


def test_context_lengths_served_and_simulated(
    in_process: list[Job], make_options: Callable[..., Options], asset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context_length, "FILLERS", 3)
    monkeypatch.setattr(context_length, "FILLER_TOKENS", 16)
    serving = Serving(asset, asset / "redrafter", 400 + NEW_TOKENS, (TREE,), dtype="float32", eager=True)
    options = context_length.Options(
        serving, lengths=(200, 400), questions=2, max_tokens=NEW_TOKENS, chat_template="vicuna", served=True
    )
    report = context_length.run(options, Console(quiet=True))
    simulated, served = report["results"][:2], report["results"][2:]
    assert [row["length"] for row in simulated] == [row["length"] for row in served] == [200, 400]
    for one, other in zip(simulated, served, strict=True):
        assert one | {"served": True} == other
        assert one["length"] - 8 <= one["prompt_tokens"] <= one["length"]
    assert simulated[0]["relative"] == 1.0
