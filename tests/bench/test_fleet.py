# SPDX-License-Identifier: Apache-2.0
"""Which engines run when, and how long each is warmed up before its figures count."""

from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from redrafter_vllm.adaptive.costs import MeasuredCosts, StepCosts
from redrafter_vllm.bench.closed_loop import Turn
from redrafter_vllm.bench.configurations import Configuration
from redrafter_vllm.bench.fleet import ADAPTIVE_WARM_UP_STEPS, TRIED_STEPS, WARM_UP_TOKENS, Fleet
from redrafter_vllm.bench.load import Load, Ramp
from redrafter_vllm.bench.prompts import Prompts
from redrafter_vllm.bench.settings import Settings
from redrafter_vllm.integration.worker.adaptive_trees import TRIAL_INTERVAL

PLAIN, FIXED, ADAPTIVE = "plain", "fixed", "adaptive"
CONFIGURATIONS = (
    Configuration(PLAIN, None, {}),
    Configuration(FIXED, {"method": "redrafter", "adaptive": False}, {}),
    Configuration(ADAPTIVE, {"method": "redrafter"}, {}),
)
SHORT = WARM_UP_TOKENS - 1  # steps that decode


class FakeEngine:
    """Emits one token of each request in a step."""

    pid = 1

    def __init__(self) -> None:
        self.warm: list[Turn] = []
        self.steps: dict[Load, int] = {}  # of warm-ups, by requests at a time

    def warm_up(self, turn: Turn) -> int:
        self.warm.append(turn)
        steps = turn.max_tokens - 1
        self.steps[turn.load] = self.steps.get(turn.load, 0) + steps
        return steps

    def take(self, turn: Turn, finished: Any) -> dict[str, Any]:
        return {"warm": dict(self.steps)}


class Engines:
    """A fleet of such engines, and what becomes of them."""

    def __init__(self, *, together: bool = True, **others: Any) -> None:
        given: dict[str, Any] = {"concurrency": (1, 4), "max_tokens": 40, **others}
        plan: Any = SimpleNamespace(
            settings=Settings("offline", "target", CONFIGURATIONS, **given), together=together, has_gpu=False
        )
        self.started: list[tuple[str, FakeEngine]] = []
        self.ended: list[str] = []
        self.said: list[str] = []
        self.fleet = Fleet(plan, Prompts([], [], False), Path("logs"), self.start, self.said.append)

    def start(self, plan: Any, configuration: Configuration, *others: Any) -> FakeEngine:
        stack: ExitStack = others[2]
        stack.callback(lambda: self.ended.append(configuration.name))
        self.started.append((configuration.name, FakeEngine()))
        return self.started[-1][1]

    def before(self, name: str, load: Load) -> dict[Load, int]:
        """Steps of the warm-ups before a turn, by requests at a time."""
        found: dict[Load, int] = self.fleet.turn(name, Turn(4, load, 40), lambda number: None)["warm"]
        return found


def test_only_what_adapts_is_warmed_up_for_long() -> None:
    engines = Engines()
    engines.fleet.start_all()
    # With the start a few tokens at the highest load, which take the memory that the engine will need.
    assert [(name, engine.steps) for name, engine in engines.started] == [
        (name, {4: SHORT}) for name in (PLAIN, FIXED, ADAPTIVE)
    ]
    assert engines.before(FIXED, 1) == {4: SHORT, 1: SHORT}
    steps = engines.before(ADAPTIVE, 1)
    assert ADAPTIVE_WARM_UP_STEPS <= steps[1] - SHORT < ADAPTIVE_WARM_UP_STEPS + 40 and steps[4] == SHORT
    assert engines.before(ADAPTIVE, 4)[4] >= ADAPTIVE_WARM_UP_STEPS
    assert engines.before(ADAPTIVE, 1)[1] == steps[1], "once is enough"


def test_the_warm_up_has_the_requests_that_are_measured() -> None:
    engines = Engines(temperature=0.7)
    engines.before(ADAPTIVE, 4)
    long = [turn for turn in engines.started[0][1].warm if turn.max_tokens != WARM_UP_TOKENS]
    assert {(turn.requests, turn.load, turn.max_tokens, turn.temperature, turn.ignore_eos) for turn in long} == {
        (4, 4, 40, 0.7, False)
    }
    assert [turn.first for turn in long] == [0, 4, 8, 12, 16]


def test_random_text_is_not_ended_and_long_requests_are_cut() -> None:
    engines = Engines(data="random", max_tokens=5000)
    engines.before(ADAPTIVE, 1)
    last = engines.started[0][1].warm[-1]
    assert last.ignore_eos and last.max_tokens == ADAPTIVE_WARM_UP_STEPS


def test_texts_that_end_at_once_do_not_warm_up_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeEngine, "warm_up", lambda self, turn: self.warm.append(turn) or 0)
    engines = Engines()
    engines.before(ADAPTIVE, 1)
    assert ADAPTIVE_WARM_UP_STEPS <= len(engines.started[0][1].warm) <= ADAPTIVE_WARM_UP_STEPS + 2


def test_every_level_of_a_ramp_is_adapted_to() -> None:
    engines = Engines(concurrency=(Ramp(4),))
    steps = engines.before(ADAPTIVE, Ramp(4))
    assert steps.keys() == {1, 2, 4} and min(steps.values()) >= ADAPTIVE_WARM_UP_STEPS
    assert engines.before(FIXED, Ramp(4)) == {4: 2 * SHORT}


def test_a_restarted_engine_adapts_again() -> None:
    engines = Engines(together=False)
    for name in (PLAIN, ADAPTIVE, ADAPTIVE, PLAIN, ADAPTIVE):
        steps = engines.before(name, 1)
        assert (steps[1] >= ADAPTIVE_WARM_UP_STEPS) == (name == ADAPTIVE)
    assert [name for name, _ in engines.started] == [PLAIN, ADAPTIVE, PLAIN, ADAPTIVE]
    assert engines.ended == [PLAIN, ADAPTIVE, PLAIN]


def test_what_is_done_is_told() -> None:
    engines = Engines()
    engines.fleet.prepare(ADAPTIVE, 4)
    assert engines.said == [
        f"{ADAPTIVE} adapts to 4 at a time, step {step} of {ADAPTIVE_WARM_UP_STEPS}" for step in (0, 39, 78, 117, 156)
    ]


@pytest.mark.parametrize("requests", [1, 2, 3, 5, 8, 16, 32, 64])
def test_every_size_is_tried_within_the_first_steps(requests: int) -> None:
    """Of steps with up to 16 nodes for each request; one of `TRIAL_INTERVAL` steps tries a new size."""
    costs = StepCosts(MeasuredCosts([(1, 0.01), (128, 0.1)], 0.0, [(1, 0.01)]), 64 * 17, 64)
    trials = 0
    while (rows := costs.unseen(requests + 1, 17 * requests)) is not None:
        costs.observe_verification(rows, requests, 0.02)
        trials += 1
    assert 0 < TRIAL_INTERVAL * trials <= TRIED_STEPS
    assert np.isfinite(costs.verification(requests, 17 * requests, requests)).all()
