# SPDX-License-Identifier: Apache-2.0
"""The scheduler's effects on requests and their trees: small budgets, late results, priorities, aborts."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import pytest

from redrafter_vllm.integration.versions import installed_before
from tests.engine.conftest import MakeEngine, keep_async_scheduling
from tests.engine.differential.cases import Case
from tests.engine.differential.compare import logprobs_difference
from tests.engine.differential.leaks import leaks
from tests.engine.differential.stream import Stream, run_stream
from tests.engine.generation import (
    CHAIN,
    TREE,
    core,
    cpu_only,
    generate,
    params,
    random_prompts,
    runner,
    scheduler,
    tokens,
)
from tests.engine.scripted import assert_identical, scripted_trees
from tests.models import VOCAB


@pytest.mark.parametrize("budget", [17, 20, 50])
def test_small_token_budgets(make_engine: MakeEngine, random_target: Path, budget: int) -> None:
    options = {"max_num_batched_tokens": budget, "max_num_seqs": 8}
    assert_identical(make_engine(random_target), make_engine(random_target, TREE, **options), count=12)


def test_node_budget_falls_with_the_batch(make_engine: MakeEngine, random_target: Path) -> None:
    schedule = [(1, 2, 16), (3, 4, 5), (5, 8, 0)]
    tree = make_engine(random_target, {**TREE, "num_speculative_tokens_per_batch_size": schedule})
    assert_identical(make_engine(random_target), tree, count=8)
    assert_identical(make_engine(random_target), tree, count=3)
    assert not runner(tree).speculator.rows.num_nodes.gt(16).any()


@pytest.mark.parametrize("slots", [1, 3])
def test_fewer_slots_than_a_beam(make_engine: MakeEngine, random_target: Path, slots: int) -> None:
    tree = make_engine(random_target, {**TREE, "num_speculative_tokens": slots})
    assert_identical(make_engine(random_target), tree)


def test_asynchronous_scheduling(make_engine: MakeEngine, random_target: Path) -> None:
    """A step is scheduled, and its inputs prepared, before the previous step's tokens are on the host."""
    plain = make_engine(random_target)
    tree = make_engine(random_target, TREE, async_scheduling=True)
    assert type(scheduler(tree)).__name__ == "RedrafterAsyncScheduler"
    assert core(tree).batch_queue_size == 2
    assert_identical(plain, tree, count=12)


def test_asynchronous_scheduling_is_on_unless_switched_off(random_target: Path) -> None:
    """For this method as for those that vLLM lists; 0.32 still refuses other methods. (A CPU switches it off later.)"""
    from vllm.engine.arg_utils import EngineArgs

    def scheduling(chosen: bool | None, speculative: dict[str, Any]) -> Any:
        args = EngineArgs(str(random_target), speculative_config=speculative, async_scheduling=chosen, max_model_len=64)
        with keep_async_scheduling():
            return args.create_engine_config().scheduler_config.async_scheduling

    for speculative in (TREE, CHAIN):
        assert [scheduling(chosen, speculative) for chosen in (None, True, False)] == [True, True, False]
    if not installed_before("0.33"):
        return
    ngram = {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 2}
    assert not scheduling(None, ngram)
    with pytest.raises(ValueError, match="async scheduling is only supported with"):
        scheduling(True, ngram)


@pytest.mark.skipif(installed_before("0.33"), reason="vLLM 0.33 tells when no request can use the next drafts")
@pytest.mark.parametrize("asynchronous", [False, True])
def test_drafts_that_no_request_can_use_are_not_drawn(
    make_engine: MakeEngine, random_target: Path, asynchronous: bool
) -> None:
    """In the middle of a prompt, and after the step that emits a request's last token for certain."""
    plain = make_engine(random_target)
    tree = make_engine(random_target, TREE, async_scheduling=asynchronous)
    speculator = runner(tree).speculator
    rng = random.Random(5)
    prompt = [rng.randrange(3, VOCAB) for _ in range(300)]  # two steps, as a step has up to 256 tokens
    for max_tokens, expected in ((1, [0, 0]), (2, [0, 16, 0])):
        sampling = params(temperature=0.0, ignore_eos=True, max_tokens=max_tokens)
        tree.reset_prefix_cache()
        with patch.object(speculator, "propose", wraps=speculator.propose) as propose:
            found = tokens(generate(tree, [prompt], sampling))
        assert [call.kwargs["num_speculative_tokens"] for call in propose.call_args_list] == expected
        assert found == tokens(generate(plain, [prompt], sampling))


@cpu_only
def test_a_cpu_switches_asynchronous_scheduling_off(random_target: Path) -> None:
    from vllm.engine.arg_utils import EngineArgs

    args = EngineArgs(str(random_target), speculative_config=TREE, async_scheduling=True, max_model_len=64)
    assert args.create_engine_config().scheduler_config.async_scheduling is False


@pytest.mark.skipif(not installed_before("0.33"), reason="vLLM 0.33 reads the list for Model Runner V1 only")
def test_a_changed_list_of_methods_raises_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    from redrafter_vllm.integration.patches.front import allow_async_scheduling
    from redrafter_vllm.integration.vllm_interface.entry import InterfaceChangedError

    monkeypatch.setattr("vllm.config.vllm.NgramGPUTypes", Literal["another"])
    with pytest.raises(
        InterfaceChangedError, match=r"rebinds vllm\.config\.vllm\.NgramGPUTypes, which this vLLM has as"
    ):
        allow_async_scheduling()


@pytest.mark.parametrize("asynchronous", [False, True])
def test_priorities(make_engine: MakeEngine, random_target: Path, asynchronous: bool) -> None:
    """A late request of high priority preempts a running one, and no request's tokens change."""
    options = {"scheduling_policy": "priority", "num_gpu_blocks_override": 14, "block_size": 16, "max_model_len": 160}
    plain = make_engine(random_target)
    tree = make_engine(random_target, TREE, max_num_seqs=3, **options, async_scheduling=asynchronous)
    prompts = random_prompts(6, VOCAB, longest=60)
    cases = [
        request(f"r{index}", index, prompt[:40], priority=-index, temperature=0.7, seed=index, max_tokens=60)
        for index, prompt in enumerate(prompts)
    ]
    expected = run_stream(plain, [replace(case, priority=0) for case in cases])
    ended: list[str] = []
    with scripted_trees(tree, {case.prompt: full(case, expected) for case in cases}):
        stream = run_stream(tree, cases, lambda step: ended.extend(newly_ended(tree, cases, ended)))
    assert {case.name: full(case, stream) for case in cases} == {case.name: full(case, expected) for case in cases}
    assert stream.preemptions > 0
    assert ended[-1] == "r0" and not leaks(tree)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_aborts_in_every_phase(make_engine: MakeEngine, random_target: Path, asynchronous: bool) -> None:
    """The tokens of all other requests, also of later ones, are those of a run without the aborted request."""
    plain = make_engine(random_target)
    options = {"max_num_seqs": 5, "max_num_batched_tokens": 100, "async_scheduling": asynchronous}
    tree = make_engine(random_target, TREE, **options)
    late = int(asynchronous)  # number of steps by which results are late
    prompts = random_prompts(12, VOCAB, longest=60, seed=8)
    cases = [
        request(f"stays {i}", i, prompt, max_tokens=20 + i, temperature=0.5, seed=i) for i, prompt in enumerate(prompts)
    ]
    leaving = [
        request("long prompt", 1, prompts[0] * 4, abort_after=1 + late),
        request("decoding", 0, prompts[1][:4], max_tokens=60, abort_after=6),
        request("drafts in flight", 0, prompts[2][:4], max_tokens=60, abort_after=6, abort_in_step=True),
        request("at its end", 0, prompts[3][:4], max_tokens=2, abort_after=1 + late, abort_in_step=True),
        request("waiting", 1, prompts[4][:4], abort_after=1),
    ]
    cases = sorted([*leaving, *cases], key=lambda case: case.arrival)
    expected = run_stream(plain, [replace(case, abort_after=None) for case in cases])
    with scripted_trees(tree, {case.prompt: full(case, expected) for case in cases}), aborts_seen(tree) as phases:
        stream = run_stream(tree, cases)
    assert phases == {
        "long prompt": "prefill",
        "decoding": "drafts in flight" if asynchronous else "decode",
        "drafts in flight": "drafts in flight",
        "at its end": "drafts in flight",
        "waiting": "waiting",
    }
    assert len(stream.answers["at its end"].completions[0].token_ids) == 1  # any second token would have been the last
    for case in cases:
        wanted, own = full(case, expected), full(case, stream)
        assert own == (wanted[: len(own)] if case in leaving else wanted)
    assert not leaks(tree)


@contextmanager
def aborts_seen(llm: Any) -> Iterator[dict[str, str]]:
    """Yields the phase in which the scheduler learns of each abort."""
    phases: dict[str, str] = {}
    finish = scheduler(llm).finish_requests

    def finish_requests(names: Any, status: Any) -> Any:
        for name in names:
            request = scheduler(llm).requests[name]
            running = request.status.name == "RUNNING"
            in_flight = request.num_in_flight_tokens > 1 and request.num_output_tokens > 0
            decoding = "drafts in flight" if in_flight else "decode"
            phase = "prefill" if request.is_prefill_chunk else decoding
            phases[name.rsplit("-", 1)[0]] = phase if running else request.status.name.lower()
        return finish(names, status)

    with patch.object(scheduler(llm), "finish_requests", finish_requests):
        yield phases


def full(case: Case, stream: Stream) -> list[int]:
    """Prompt and completion of a request."""
    completions = stream.answers[case.name].completions
    return [*case.prompt, *(completions[0].token_ids if completions else ())]


def newly_ended(llm: Any, cases: list[Case], ended: list[str]) -> list[str]:
    running = {name.rsplit("-", 1)[0] for name in scheduler(llm).requests}
    return [case.name for case in cases if case.name not in running and case.name not in ended]


def test_placeholders_are_not_scored_as_prompt(make_engine: MakeEngine, random_target: Path) -> None:
    """vLLM pads a waiting request of one token with placeholder drafts, to have as many rows as those that run."""
    plain, tree = make_engine(random_target), make_engine(random_target, TREE)
    cases = [request("running", 0, [5, 6, 7]), request("one", 4, [8], prompt_logprobs=2)]
    expected, stream = run_stream(plain, cases), run_stream(tree, cases)
    for case in cases:
        wanted, answer = expected.answers[case.name], stream.answers[case.name]
        assert full(case, stream) == full(case, expected)
        assert logprobs_difference(wanted.prompt_logprobs, answer.prompt_logprobs) is None


def request(
    name: str,
    arrival: int,
    prompt: list[int],
    *,
    priority: int = 0,
    abort_after: int | None = None,
    abort_in_step: bool = False,
    **options: Any,
) -> Case:
    defaults = {"temperature": 0.0, "max_tokens": 30, "ignore_eos": True, "detokenize": False}
    return Case(name, tuple(prompt), {**defaults, **options}, arrival, priority, abort_after, abort_in_step)
