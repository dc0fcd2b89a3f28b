# SPDX-License-Identifier: Apache-2.0
"""Trees that adapt on a CPU: the tokens of plain vLLM for any budget, and less work where drafts fail."""

import logging
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from benchmarks.serving.adaptation import Watch
from redrafter_vllm.adaptive.costs import MeasuredCosts
from redrafter_vllm.adaptive.outlook import Outlook
from redrafter_vllm.adaptive.pause import DraftingPause
from redrafter_vllm.integration.worker import adaptive_report, adaptive_trees
from redrafter_vllm.integration.worker.speculator import RedrafterSpeculator
from tests.engine.budgets import chosen_budgets, random_budgets
from tests.engine.conftest import MakeEngine
from tests.engine.generation import CHAIN, TREE, cpu_only, generate, params, random_prompts, runner, tokens
from tests.models import VOCAB

pytestmark = cpu_only

ADAPTIVE = {**TREE, "adaptive": True}
FREE_ROWS = MeasuredCosts([(1, 0.02), (128, 0.02)], 0.0, [(1, 0.001), (8, 0.001)])
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
    assert observer.costs.between(8, is_drawn=True) > 0


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


def test_the_benchmark_of_adapting_sees_every_step_and_which_ones_draft(make_engine: MakeEngine, asset: Path) -> None:
    llm, rounds = make_engine(asset, ADAPTIVE), []
    prompts = random_prompts(2, 2048, seed=7)
    finished: list[int] = []

    def drawn_at_first(self: Outlook, *_: Any) -> bool:
        rounds.append(self)
        return len(rounds) > 6

    with patch.object(Outlook, "skips", drawn_at_first), patch.object(DraftingPause, "is_paused", False):
        steps = Watch(prompts, 24, 1.0).answer(llm, None, finished.append)["steps"]  # type: ignore[arg-type]
    assert finished == [2]
    assert all(step.seconds > 0 and step.tokens >= 2 for step in steps)
    assert steps[0].is_drafted and not steps[-1].is_drafted
    assert all(step.tokens == 2 for step in steps if not step.is_drafted)
    # Every token but the prompts' own ones, and those of steps after the first request has left.
    assert 2 * 23 - 5 <= sum(step.tokens for step in steps) <= 2 * 23


def test_the_benchmark_of_adapting_needs_trees_that_adapt(make_engine: MakeEngine, asset: Path) -> None:
    with pytest.raises(ValueError, match="do not adapt"):
        Watch([[1, 2, 3]], 4, 1.0).answer(make_engine(asset, TREE), None, print)  # type: ignore[arg-type]


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
    ("options", "engine", "reason"),
    [
        ({"num_speculative_tokens_per_batch_size": [[1, 1024, 3]]}, {}, "num_speculative_tokens_per_batch_size"),
        ({}, {"enable_lora": True, "max_loras": 1, "max_lora_rank": 8}, "vLLM"),
        ({"adaptive": False}, {}, None),
    ],
    ids=["schedule", "LoRA", "switched off"],
)
def test_what_is_in_force_is_logged(
    make_engine: MakeEngine,
    random_target: Path,
    options: dict[str, Any],
    engine: dict[str, Any],
    reason: str | None,
) -> None:
    with patch.object(adaptive_report.logger, "log") as log:
        llm = make_engine(random_target, {**TREE, "beam_length": 5, "adaptive": None, **options}, **engine)
    assert runner(llm).adaptive_verification is None
    assert [str(call.args[2]).split()[0] for call in log.call_args_list] == ([] if reason is None else [reason])


REASONS: dict[str, tuple[str, str, Any]] = {
    "several workers": ("parallel_config", "world_size", 2),
    "vLLM names the adapter": ("", "lora_config", object()),
    "num_speculative_tokens_per_batch_size": (
        "speculative_config",
        "num_speculative_tokens_per_batch_size",
        [[1, 8, 3]],
    ),
}


@pytest.mark.parametrize("adaptive", [None, True, False])
@pytest.mark.parametrize("reason", REASONS)
def test_where_trees_do_not_adapt_the_log_says_why(
    make_engine: MakeEngine, random_target: Path, reason: str, adaptive: bool | None
) -> None:
    """A warning where the user has asked for it; a schedule and `adaptive` work together."""
    own = runner(make_engine(random_target, TREE))
    part, name, value = REASONS[reason]
    config = own.vllm_config
    with (
        patch.object(config.speculative_config, "adaptive", adaptive),
        patch.object(getattr(config, part) if part else config, name, value),
        patch.object(adaptive_trees, "measure_costs", lambda *_: FREE_ROWS),
        patch.object(adaptive_report.logger, "log") as log,
        patch.object(own, "adaptive_verification", None),
        patch.object(own.speculator, "observer", None),
        patch.object(own.speculator, "survival", None),
        patch.object(own.speculator, "draft_token_confidence_probs", None),
    ):
        adaptive_trees.adapt_trees(own)
        is_in_force = own.adaptive_verification is not None
        assert is_in_force == (own.speculator.observer is not None)
    assert is_in_force == (adaptive is True and "per_batch_size" in reason)
    said = [(call.args[0], str(call.args[2]).startswith(reason)) for call in log.call_args_list]
    is_silent = adaptive is False or is_in_force
    assert said == ([] if is_silent else [(logging.INFO if adaptive is None else logging.WARNING, True)])


def test_a_schedule_limits_trees_that_adapt(make_engine: MakeEngine, asset: Path) -> None:
    prompts = random_prompts(len(requests()), 2048, seed=9)
    wanted = generate(make_engine(asset), prompts, requests())
    llm = make_engine(asset, {**ADAPTIVE, "num_speculative_tokens_per_batch_size": [[1, 1024, 3]]})
    with chosen_budgets(llm, FREE_ROWS) as chosen:
        assert_same(generate(llm, prompts, requests()), wanted)
    assert max(nodes for step in chosen for nodes in step.values()) == 3
