# SPDX-License-Identifier: Apache-2.0
"""A turn on an engine whose steps are scripted, on a clock that each of them moves."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from redrafter_vllm.bench import closed_loop
from redrafter_vllm.bench.closed_loop import DRAFTED, SKIPPED, Answer, ClosedLoop, Turn, drafts_of, result_of
from redrafter_vllm.bench.load import Ramp, limits


class ScriptedEngine:
    """Emits for every running request the next number of its script; each step takes a second."""

    def __init__(self, scripts: Sequence[Sequence[int]], monkeypatch: pytest.MonkeyPatch) -> None:
        self.scripts = [list(script) for script in scripts]
        self.running: dict[str, list[int]] = {}
        self.most_at_once = 0
        self.now = 100.0
        monkeypatch.setattr(closed_loop, "time", SimpleNamespace(perf_counter=lambda: self.now))

    def add_request(self, request_id: str, prompt: dict[str, list[int]], sampling: Any) -> None:
        assert prompt == {"prompt_token_ids": [int(request_id)]} and sampling == f"s{request_id}"
        self.running[request_id] = self.scripts[int(request_id)]
        self.most_at_once = max(self.most_at_once, len(self.running))

    def step(self) -> list[Any]:
        self.now += 1.0
        outputs = []
        for request_id, script in [*self.running.items()]:
            emitted = script.pop(0)
            if not script:
                del self.running[request_id]
            tokens = [7] * emitted
            outputs.append(
                SimpleNamespace(request_id=request_id, outputs=[SimpleNamespace(token_ids=tokens)], finished=not script)
            )
        return outputs


def test_requests_follow_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    # The first step of a request computes its prompt. Request 2 starts when request 0 has ended, after step 3.
    engine = ScriptedEngine([[1, 2, 3], [1, 1, 1, 1, 1], [1, 4]], monkeypatch)
    finished: list[int] = []
    loop = ClosedLoop(SimpleNamespace(llm_engine=engine), finished.append)
    found = loop.run([[0], [1], [2]], ["s0", "s1", "s2"], [2, 2, 2])
    assert engine.most_at_once == 2
    assert finished == [1, 2]
    assert found["seconds"] == 5.0
    assert found["tokens"] == [6, 5, 5]
    assert found["emitted"] == [[1, 2, 3], [1, 1, 1, 1, 1], [1, 4]]
    assert found["ttft"] == [1.0, 1.0, 1.0]
    assert found["latency"] == [3.0, 5.0, 2.0]
    # Behind the first tokens: 5 tokens in 2 steps, 4 in 4, 4 in 1.
    assert found["tokens_per_step"] == pytest.approx(13 / 7) and found["steps"] == 7
    # Of 7 steps 3 emit more than one token, 2 more than two, 1 more than three.
    assert found["acceptance"] == pytest.approx([3 / 7, 2 / 7, 1 / 7])
    # Steps 1 and 4 compute prompts.
    assert loop.decode_seconds == [1.0, 1.0, 1.0] and found["decode_steps"] == 3


def test_a_ramp_goes_up_and_back(monkeypatch: pytest.MonkeyPatch) -> None:
    # Ten requests of three steps each: one alone, two, four, two, and one again.
    engine = ScriptedEngine([[1, 1, 1]] * 10, monkeypatch)
    at_once: list[int] = []
    step = engine.step
    monkeypatch.setattr(engine, "step", lambda: (at_once.append(len(engine.running)), step())[1])
    loop = ClosedLoop(SimpleNamespace(llm_engine=engine))
    found = loop.run([[n] for n in range(10)], [f"s{n}" for n in range(10)], limits(Ramp(4), 1))
    assert at_once == [1] * 3 + [2] * 3 + [4] * 3 + [2] * 3 + [1] * 3
    assert len(found["tokens"]) == 10


def test_prompts_of_a_turn() -> None:
    assert Turn(2, 1, 8).prompts_of(["a", "b", "c"]) == ["a", "b"]
    assert Turn(3, 1, 8, first=4).prompts_of(["a", "b", "c"]) == ["b", "c", "a"]


def test_prompts_computed_in_parts_begin_with_their_first_token(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = ScriptedEngine([[0, 0, 1, 1]], monkeypatch)
    found = ClosedLoop(SimpleNamespace(llm_engine=engine)).run([[0]], ["s0"], [1])
    assert found["ttft"] == [3.0] and found["tokens_per_step"] == 1.0 and found["acceptance"] == []


def test_without_a_second_token_there_are_no_steps() -> None:
    alone = Answer(1.0, 2.0, 2.0, [5], [1])
    found = result_of([alone], 1.0)
    assert found["tokens_per_step"] is None and found["acceptance"] == [] and found["steps"] == 0


def test_what_was_drafted() -> None:
    found = {"steps": 20, "decode_steps": 8}
    before, now = {DRAFTED: 10.0, SKIPPED: 1.0}, {DRAFTED: 60.0, SKIPPED: 3.0}
    assert drafts_of(found, before, now) == {"nodes_per_step": 2.5, "skipped": 0.25}
    # Other methods have no rounds to skip, plain vLLM drafts nothing, and without a step there is no mean.
    assert drafts_of(found, {}, {DRAFTED: 50.0}) == {"nodes_per_step": 2.5, "skipped": None}
    assert drafts_of(found, {}, {}) == {"nodes_per_step": None, "skipped": None}
    assert drafts_of({"steps": 0, "decode_steps": 0}, before, now) == {"nodes_per_step": None, "skipped": None}
