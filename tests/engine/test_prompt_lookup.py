# SPDX-License-Identifier: Apache-2.0
"""Copies of the text in an engine's trees: what they bring where text repeats, and which requests have none."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from redrafter_vllm.integration.worker.adaptive_report import StepRecords
from tests.engine.conftest import MakeEngine
from tests.engine.generation import CHAIN, TREE, generate, params, runner, tokens
from tests.engine.test_identity import emitted_per_step
from tests.models import save_random_drafter

COPIES = {**TREE, "prompt_lookup": True}
LINES = ["    print(value)\n", "    self.count += 1\n", "import os\n", "    'name': None,\n"]


@pytest.fixture(scope="module")
def prompts(asset: Path) -> list[list[int]]:
    """Lines that repeat themselves, as then the target does."""
    tokenizer = AutoTokenizer.from_pretrained(asset)
    return [tokenizer.encode(line * 8) for line in LINES]


@pytest.fixture(scope="module")
def ignorant(asset: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Trees of a random drafter, with copies."""
    path = tmp_path_factory.mktemp("drafter") / "random"
    return {**COPIES, "model": str(save_random_drafter(path, vocab_size=2048, hidden_size=256))}


def emitted(llm: Any, prompts: Any, sampling: Any) -> tuple[list[list[list[int]]], float]:
    with emitted_per_step() as counts:
        answers = tokens(generate(llm, prompts, sampling))
    return answers, sum(counts) / len(counts)


@pytest.fixture
def plain(make_engine: MakeEngine, asset: Path) -> Any:
    return make_engine(asset)


def test_a_drafter_that_knows_nothing_goes_on_with_what_was_said(
    make_engine: MakeEngine, asset: Path, plain: Any, prompts: Any, ignorant: dict[str, Any]
) -> None:
    sampling = params(temperature=0.0, max_tokens=96)
    expected = tokens(generate(plain, prompts, sampling))
    answers, mean = emitted(make_engine(asset, ignorant), prompts, sampling)
    without, mean_without = emitted(make_engine(asset, {**ignorant, "prompt_lookup": False}), prompts, sampling)
    assert answers == without == expected
    assert mean_without < 1.2 and mean > 2


def test_copies_are_longer_than_beams(
    make_engine: MakeEngine, asset: Path, prompts: Any, ignorant: dict[str, Any]
) -> None:
    llm = make_engine(asset, ignorant)
    drafting = runner(llm).speculator.drafting
    with emitted_per_step() as counts:
        generate(llm, prompts, params(temperature=0.0, max_tokens=96))
    assert 1 + drafting.beam_length < max(counts) <= 1 + drafting.num_speculative_tokens


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.9},
        {"temperature": 0.7, "top_k": 20, "repetition_penalty": 1.2},
        {"temperature": 0.0, "presence_penalty": 0.5, "bad_words_of": 23},
    ],
    ids=["sampled", "penalised", "banned"],
)
def test_seeded_and_penalised_tokens_are_those_of_plain_vllm(
    make_engine: MakeEngine, asset: Path, plain: Any, prompts: Any, ignorant: dict[str, Any], options: dict[str, Any]
) -> None:
    banned = options.pop("bad_words_of", None)
    sampling = [params(seed=index, max_tokens=48, **options) for index in range(len(prompts))]
    for each in sampling:
        if banned is not None:
            each._bad_words_token_ids = [[banned], [17, 31]]
    expected = tokens(generate(plain, prompts, sampling))
    assert tokens(generate(make_engine(asset, ignorant), prompts, sampling)) == expected


def test_requests_with_fewer_beams_have_no_copies(
    make_engine: MakeEngine, asset: Path, prompts: Any, ignorant: dict[str, Any]
) -> None:
    llm = make_engine(asset, ignorant)
    limited = params(temperature=0.0, max_tokens=64, extra_args={"redrafter": {"beam_width": 2}})
    _, mean = emitted(llm, prompts, limited)
    assert mean < 1.2


def test_chains_have_no_copies(make_engine: MakeEngine, asset: Path, prompts: Any, ignorant: dict[str, Any]) -> None:
    llm = make_engine(asset, {**ignorant, **CHAIN})
    assert not runner(llm).speculator.drafting.copies_text
    _, mean = emitted(llm, prompts, params(temperature=0.0, max_tokens=64))
    assert mean < 1.2


def test_adaptive_trees_take_copies(
    make_engine: MakeEngine, asset: Path, prompts: Any, ignorant: dict[str, Any]
) -> None:
    llm = make_engine(asset, {**ignorant, "adaptive": True})
    sampling = params(temperature=0.0, max_tokens=200)
    generate(llm, prompts, sampling)
    found = runner(llm).adaptive_verification.records.unlogged
    assert found.accepted > found.steps  # more than one draft token a step


def test_rounds_of_copies_alone(
    make_engine: MakeEngine,
    asset: Path,
    plain: Any,
    prompts: Any,
    ignorant: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Under load the drafter may not pay where copies do."""
    llm = make_engine(asset, {**ignorant, "adaptive": True})
    trees = runner(llm).adaptive_verification
    assert trees.costs.fewest_beam_steps == 0
    monkeypatch.setattr(trees.outlook, "draws", lambda num_requests: 0)
    monkeypatch.setattr(trees, "records", StepRecords())
    sampling = params(temperature=0.0, max_tokens=200)
    expected = tokens(generate(plain, prompts, sampling))
    assert tokens(generate(llm, prompts, sampling)) == expected
    assert trees.records.unlogged.accepted > 0
