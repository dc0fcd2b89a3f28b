# SPDX-License-Identifier: Apache-2.0
"""Steps of an engine, divided into prompts and decoding."""

from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.engines import steps as module
from benchmarks.engines.steps import Steps, decoding, recorded_steps


def test_decoding_begins_after_the_last_request_s_first_token() -> None:
    steps = Steps()
    steps.add(1.0, {"a": 1})
    steps.add(2.0, {"a": 3, "b": 1})  # b's prompt is computed in the same step as a's drafts
    steps.add(2.5, {"a": 2, "b": 4})
    steps.add(4.0, {"b": 1})
    assert steps.by_request == {"a": [1, 3, 2], "b": [1, 4, 1]}
    assert [step.requests for step in steps.in_order] == [1, 2, 2, 1]
    assert decoding(steps.in_order) == {"tokens": 7, "seconds": pytest.approx(2.0)}


def test_steps_without_tokens_are_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    def outputs(**emitted: int) -> Any:
        return SimpleNamespace(
            outputs=[SimpleNamespace(request_id=name, new_token_ids=[0] * tokens) for name, tokens in emitted.items()]
        )

    waiting, clock = [outputs(), outputs(a=1, b=0), outputs(a=2, b=1)], iter((10.0, 11.5))
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(clock))
    core = SimpleNamespace(get_output=lambda: waiting.pop(0))
    original = core.get_output
    with recorded_steps(SimpleNamespace(llm_engine=SimpleNamespace(engine_core=core))) as steps:
        for _ in range(3):
            core.get_output()
    assert core.get_output is original
    assert [(step.ended, step.tokens, step.begun) for step in steps.in_order] == [(10.0, 1, 1), (11.5, 3, 1)]


def test_finished_requests_are_reported() -> None:
    def output(request: str, finished: bool) -> Any:
        return SimpleNamespace(request_id=request, new_token_ids=[0], finished=finished)

    waiting = [[output("a", False)], [output("a", True), output("b", True)], [output("c", False)], [output("c", True)]]
    core = SimpleNamespace(get_output=lambda: SimpleNamespace(outputs=waiting.pop(0)))
    told: list[int] = []
    with recorded_steps(SimpleNamespace(llm_engine=SimpleNamespace(engine_core=core)), told.append):
        for _ in range(4):
            core.get_output()
    assert told == [2, 1]
