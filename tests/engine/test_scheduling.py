# SPDX-License-Identifier: Apache-2.0
"""Trees cut short by the scheduler: small token budgets and node budgets that fall with the batch."""

from pathlib import Path
from typing import Any

import pytest

from tests.engine.conftest import MakeEngine
from tests.engine.differential.cases import Case
from tests.engine.differential.compare import logprobs_difference
from tests.engine.differential.stream import run_stream
from tests.engine.generation import TREE, core, runner, scheduler
from tests.engine.scripted import assert_identical

pytestmark = pytest.mark.engine


@pytest.mark.parametrize("budget", [8, 20, 50])
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
    """A step is scheduled, and its inputs made, before the tokens of the one before have reached the host."""
    plain = make_engine(random_target)
    tree = make_engine(random_target, TREE, async_scheduling=True)
    assert type(scheduler(tree)).__name__ == "AsyncScheduler"
    assert core(tree).batch_queue_size == 2
    assert_identical(plain, tree, count=12)


def test_placeholders_are_no_prompt(make_engine: MakeEngine, random_target: Path) -> None:
    """vLLM pads a waiting request of one token with placeholder drafts, to have as many rows as those that run."""
    plain, tree = make_engine(random_target), make_engine(random_target, TREE)
    options = {"temperature": 0.0, "max_tokens": 30, "ignore_eos": True, "detokenize": False}
    cases = [request("running", 0, [5, 6, 7], **options), request("one", 4, [8], prompt_logprobs=2, **options)]
    expected, stream = run_stream(plain, cases), run_stream(tree, cases)
    for name, answer in stream.answers.items():
        wanted = expected.answers[name]
        assert answer.completions[0].token_ids == wanted.completions[0].token_ids
        assert logprobs_difference(wanted.prompt_logprobs, answer.prompt_logprobs) is None


def request(name: str, arrival: int, prompt: list[int], **options: Any) -> Case:
    return Case(name, tuple(prompt), options, arrival, priority=0, abort_after=None, abort_in_step=False)
