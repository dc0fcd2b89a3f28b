# SPDX-License-Identifier: Apache-2.0
"""Trees that adapt on a CPU: the tokens of plain vLLM for any budget, and less work where drafts fail."""

from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from redrafter_vllm.adaptive.outlook import Outlook
from redrafter_vllm.adaptive.pause import DraftingPause
from redrafter_vllm.integration.worker import adaptive_report
from redrafter_vllm.integration.worker.speculator import RedrafterSpeculator
from tests.engine.budgets import random_budgets
from tests.engine.conftest import MakeEngine
from tests.engine.generation import CHAIN, TREE, cpu_only, generate, params, random_prompts, runner, tokens
from tests.models import VOCAB

pytestmark = cpu_only

ADAPTIVE = {**TREE, "adaptive": True}
KINDS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.8},
    {"temperature": 0.7, "repetition_penalty": 1.2, "presence_penalty": 0.3},
    {"logprobs": 2, "prompt_logprobs": 1},
    {"n": 2, "temperature": 0.9, "top_p": 0.9},
    {"extra_args": {"redrafter": {"num_speculative_tokens": 3}}},
    {"extra_args": {"redrafter": {"enabled": False}}},
    {"stop_token_ids": [11, 12, 13]},
]


def requests() -> list[Any]:
    return [params(**{"temperature": 0.0, "seed": index, **kind}) for index, kind in enumerate(KINDS * 2)]


def assert_same(outputs: list[Any], wanted: list[Any]) -> None:
    assert tokens(outputs) == tokens(wanted)
    for output, plain in zip(outputs, wanted, strict=True):
        assert (output.prompt_logprobs is None) == (plain.prompt_logprobs is None)
        for position, entry in enumerate(plain.prompt_logprobs or ()):
            if entry is not None:
                assert output.prompt_logprobs[position].keys() == entry.keys()
        for completion, other in zip(output.outputs, plain.outputs, strict=True):
            for mine, theirs in zip(completion.logprobs or (), other.logprobs or (), strict=True):
                assert mine.keys() == theirs.keys()


@pytest.mark.parametrize("speculative", [TREE, CHAIN], ids=["tree", "chain"])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_any_budget_gives_the_tokens_of_plain_vllm(
    make_engine: MakeEngine, asset: Path, speculative: dict[str, Any], asynchronous: bool
) -> None:
    prompts = random_prompts(len(requests()), 2048, seed=5)
    wanted = generate(make_engine(asset), prompts, requests())
    llm = make_engine(asset, {**speculative, "adaptive": True}, async_scheduling=asynchronous)
    with random_budgets(seed=asynchronous) as chosen:
        outputs = generate(llm, prompts, requests())
    assert_same(outputs, wanted)
    assert 0 in chosen and max(chosen) > 0


def test_chosen_budgets_give_the_tokens_of_plain_vllm(make_engine: MakeEngine, asset: Path) -> None:
    prompts = random_prompts(len(requests()), 2048, seed=6)
    wanted = generate(make_engine(asset), prompts, requests())
    llm = make_engine(asset, ADAPTIVE)
    assert_same(generate(llm, prompts, requests()), wanted)
    observer, survival = runner(llm).adaptive_verification, runner(llm).speculator.survival
    assert observer is runner(llm).speculator.observer
    # Both have learned: from the walks, and from the clock.
    assert survival.num_fits or survival.estimates.sums.abs().sum() > 0
    assert observer.costs.has_seen_plain(8)


@pytest.mark.parametrize("beam_steps", [1, 3])
def test_a_round_has_the_beam_steps_that_pay(make_engine: MakeEngine, asset: Path, beam_steps: int) -> None:
    llm = make_engine(asset, ADAPTIVE)
    depths: list[int] = []
    run = RedrafterSpeculator._run_round

    def record(self: RedrafterSpeculator, size: int, *args: Any) -> None:
        run(self, size, *args)
        depths.append(int(self.rows.depths[self.buffers.first(size).rows].max()))

    with (
        patch.object(RedrafterSpeculator, "_run_round", record),
        patch.object(Outlook, "skips", lambda *_: False),
        patch.object(Outlook, "draws", lambda *_: beam_steps),
        patch.object(DraftingPause, "is_paused", False),
    ):
        generate(llm, random_prompts(2, 2048, seed=4), params(temperature=0.0, max_tokens=8, ignore_eos=True))
    assert set(depths) == {beam_steps}


def test_drafting_that_fails_pauses_and_is_tried_again(make_engine: MakeEngine, random_target: Path) -> None:
    llm = make_engine(random_target, ADAPTIVE)
    rounds: list[bool] = []
    begins = RedrafterSpeculator._begins_round

    def record(self: RedrafterSpeculator, *args: Any) -> bool:
        rounds.append(begins(self, *args))
        return rounds[-1]

    prompts = random_prompts(1, VOCAB, seed=1)
    with patch.object(RedrafterSpeculator, "_begins_round", record):
        generate(llm, prompts, params(temperature=0.0, max_tokens=150, ignore_eos=True))
    # Trials of a few rounds, and pauses between them that grow.
    drawn = "".join("d" if is_drawn else "-" for is_drawn in rounds)
    assert 8 <= drawn.count("d") < 0.6 * len(drawn), drawn
    assert len([part for part in drawn.split("-") if part]) >= 2, drawn


def test_requests_without_drafts_say_nothing_about_drafting(make_engine: MakeEngine, asset: Path) -> None:
    """Their steps draw no round, whether or not one would pay."""
    llm = make_engine(asset, ADAPTIVE)
    off = {"redrafter": {"enabled": False}}
    prompts = random_prompts(1, 2048, seed=3)
    generate(llm, prompts, params(temperature=0.0, max_tokens=8))
    with patch.object(DraftingPause, "judge") as judge:
        generate(llm, prompts, params(temperature=0.0, max_tokens=40, ignore_eos=True, extra_args=off))
    assert judge.call_count == 0


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"num_speculative_tokens_per_batch_size": [[1, 1024, 3]]}, "num_speculative_tokens_per_batch_size"),
        ({"adaptive": False}, None),
    ],
)
def test_what_is_in_force_is_logged(
    make_engine: MakeEngine,
    random_target: Path,
    options: dict[str, Any],
    reason: str | None,
) -> None:
    with patch.object(adaptive_report.logger, "log") as log:
        llm = make_engine(random_target, {**TREE, "beam_length": 5, "adaptive": None, **options})
    assert runner(llm).adaptive_verification is None
    assert [str(call.args[2]).split()[0] for call in log.call_args_list] == ([] if reason is None else [reason])
