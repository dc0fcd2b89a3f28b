# SPDX-License-Identifier: Apache-2.0
"""The order of turns, what is stored when, and which folders of results are taken."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tqdm import tqdm

from redrafter_vllm.bench.child import ChildError
from redrafter_vllm.bench.closed_loop import Turn
from redrafter_vllm.bench.configurations import Configuration
from redrafter_vllm.bench.load import Load, Ramp
from redrafter_vllm.bench.rounds import ContinueError, Results, requests_left, run_rounds, turns
from redrafter_vllm.bench.settings import Settings

PLAIN, OURS = Configuration("plain vLLM", None, {}), Configuration("ours", {"method": "ngram"}, {})


def settings(**others: Any) -> Settings:
    given: dict[str, Any] = {"concurrency": (1, 4), "requests": 3, "rounds": 2, "max_tokens": 40, **others}
    return Settings("offline", "target", (PLAIN, OURS), **given)


class FakeFleet:
    """Answers each turn at once; `fails` raises an error before some turn."""

    def __init__(self, fails: Callable[[int], bool] = lambda number: False) -> None:
        self.plan, self.memory = SimpleNamespace(together=True), {"plain vLLM": 5, "ours": 6}
        self.taken: list[tuple[str, Turn]] = []
        self.prepared: list[tuple[str, Load]] = []
        self.fails = fails
        self.started = False

    def start_all(self) -> None:
        self.started = True

    def prepare(self, name: str, load: Load) -> None:
        self.prepared.append((name, load))

    def turn(self, name: str, turn: Turn, finished: Callable[[int], None]) -> dict[str, Any]:
        if self.fails(len(self.taken)):
            raise ChildError("an engine failed")
        self.taken.append((name, turn))
        finished(1)
        outputs = [[1, 2, 3]] * turn.requests
        if name == "ours":
            outputs = [[1, 2, 4], *outputs[1:]]
        found: dict[str, Any] = {"outputs": outputs, "seconds": 1.0}
        return {**found, "milliseconds": {"whole step": 1.0}} if turn.phases else found


def run(results: Results, fleet: FakeFleet, wanted: Settings) -> int:
    done = results.begin({"settings": wanted.described(), "versions": {"vllm": "1"}})
    with tqdm(total=requests_left(wanted, done), file=io.StringIO()) as bar:
        run_rounds(wanted, fleet, results, done, bar)  # type: ignore[arg-type]
        assert bar.n == bar.total
    return done


def test_the_order_alternates() -> None:
    assert list(turns(settings(), 0, together=True)) == [
        (1, "plain vLLM"),
        (1, "ours"),
        (4, "plain vLLM"),
        (4, "ours"),
    ]
    assert list(turns(settings(), 1, together=True))[:2] == [(1, "ours"), (1, "plain vLLM")]


def test_an_engine_that_runs_alone_takes_all_of_its_turns() -> None:
    assert list(turns(settings(), 1, together=False)) == [
        (1, "ours"),
        (4, "ours"),
        (1, "plain vLLM"),
        (4, "plain vLLM"),
    ]


def test_requests() -> None:
    # At least three, and as many as run at a time: 3 + 4, for two configurations, in two rounds.
    assert requests_left(settings(), 0) == 28
    assert requests_left(settings(), 1) == 14
    assert requests_left(settings(), 5) == 0


def test_rounds_are_stored(tmp_path: Path) -> None:
    results, fleet = Results(tmp_path / "new"), FakeFleet()
    assert run(results, fleet, settings()) == 0
    assert fleet.started
    found = results.rounds()
    assert len(found) == 2
    first = found[0][1]
    assert (first["configuration"], first["concurrency"], first["same_requests"]) == ("ours", 1, 2)
    assert first["memory"] == 6 and first["milliseconds"] == {"whole step": 1.0}
    assert found[0][0]["same_requests"] == 3
    # The phases are timed in the first round only, by turns that do not count.
    assert [turn.phases for _, turn in fleet.taken] == [False, True] * 4 + [False] * 4
    assert {turn.max_tokens for _, turn in fleet.taken if turn.phases} == {32}
    assert "milliseconds" not in found[1][0]


def test_an_interrupted_benchmark_continues(tmp_path: Path) -> None:
    results = Results(tmp_path / "new")
    with pytest.raises(ChildError):
        run(results, FakeFleet(lambda taken: taken == 9), settings())  # the second turn of the second round
    assert len(results.rounds()) == 1
    stored = (results.folder / "rounds" / "001.json").read_bytes()
    fleet = FakeFleet()
    assert run(results, fleet, settings()) == 1
    assert len(fleet.taken) == 4 and len(results.rounds()) == 2
    assert (results.folder / "rounds" / "001.json").read_bytes() == stored


def test_rounds_can_be_added(tmp_path: Path) -> None:
    results = Results(tmp_path / "new")
    run(results, FakeFleet(), settings())
    assert run(results, FakeFleet(), settings(rounds=5)) == 2
    assert len(results.rounds()) == 5


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"concurrency": (1,)}, "another concurrency:"), ({"max_tokens": 8, "requests": 9}, "max_tokens, requests")],
)
def test_another_benchmark_is_not_continued(changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    results = Results(tmp_path / "new")
    run(results, FakeFleet(), settings())
    with pytest.raises(ContinueError, match=message):
        run(results, FakeFleet(), settings(**changed))
    assert len(results.rounds()) == 2


def test_a_ramp_has_turns_but_no_times_of_phases(tmp_path: Path) -> None:
    results, fleet = Results(tmp_path / "new"), FakeFleet()
    run(results, fleet, settings(concurrency=(1, Ramp(2)), rounds=1))
    assert [turn["concurrency"] for turn in results.rounds()[0]] == [1, 1, "1-2-1", "1-2-1"]
    assert [turn.load for _, turn in fleet.taken if not turn.phases] == [1, 1, Ramp(2), Ramp(2)]
    assert [turn.requests for _, turn in fleet.taken if not turn.phases] == [3, 3, 4, 4]
    assert [turn.load for _, turn in fleet.taken if turn.phases] == [1, 1]
    assert fleet.prepared == [(name, load) for load in (1, Ramp(2)) for name in (PLAIN.name, OURS.name)]


def test_another_version_is_not_continued(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.begin({"settings": {}, "versions": {"vllm": "1"}})
    with pytest.raises(ContinueError, match="of another versions"):
        results.begin({"settings": {}, "versions": {"vllm": "2"}})


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ContinueError, match="holds no benchmark"):
        Results(tmp_path).begin({"settings": {}})
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_damaged_run_is_named(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ContinueError, match=r"run.json cannot be read"):
        Results(tmp_path).begin({"settings": {}})
    (tmp_path / "run.json").write_text(json.dumps([1]))
    with pytest.raises(ContinueError, match="another kind"):
        Results(tmp_path).begin({"settings": {}})
