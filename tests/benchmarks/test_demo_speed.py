# SPDX-License-Identifier: Apache-2.0
"""The demonstration's speeds: engines that take turns where memory holds both, and one pass each elsewhere."""

import io
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest
from rich.console import Console

from benchmarks.demo import speed
from benchmarks.demo.options import DemoOptions, parse_args
from benchmarks.demo.pair import Pair
from benchmarks.demo.speed import PLAIN, REDRAFTER, Speeds, measure
from redrafter_vllm.bench.child import ChildError
from redrafter_vllm.bench.closed_loop import Answer, Turn, result_of
from redrafter_vllm.bench.configurations import Configuration
from redrafter_vllm.bench.engine import Finished
from redrafter_vllm.bench.fleet import Engine, Waiting
from redrafter_vllm.bench.prompts import Prompts
from redrafter_vllm.bench.settings import Plan
from tests.models import save_random_drafter, save_random_llama

GIB = 1 << 30
PROMPTS = [[1, 2, 3], [4, 5, 6, 7]]


class Machine:
    """Starts engines that answer at once: plain vLLM at 10 tokens a second, ReDrafter at 20, 5, 15 and so on."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.plans: list[Plan] = []
        self.configurations: list[Configuration] = []
        self.speeds = iter([20.0, 5.0, 15.0, 12.0, 11.0])

    def start(
        self,
        plan: Plan,
        configuration: Configuration,
        prompts: Prompts,
        log: Path,
        stack: ExitStack,
        waiting: Waiting,
    ) -> Engine:
        waiting(1.0)
        assert prompts.ids == PROMPTS
        self.events.append(f"start {configuration.name}")
        stack.callback(self.events.append, f"end {configuration.name}")
        self.plans.append(plan)
        self.configurations.append(configuration)
        return FakeEngine(self, configuration.name)


class FakeEngine:
    def __init__(self, machine: Machine, name: str) -> None:
        self.machine, self.name, self.pid = machine, name, 1 << 30

    def take(self, turn: Turn, finished: Finished) -> dict[str, Any]:
        if turn.phases:
            return {"milliseconds": {"whole step": 1.0}}
        self.machine.events.append(self.name)
        tokens_per_second = 10.0 if self.name == PLAIN else next(self.machine.speeds)
        finished(turn.requests)
        answers = [Answer(0.0, 0.1, 1.0, [7] * 4, [1, 2, 1]) for _ in range(turn.requests)]
        return result_of(answers, 4 * turn.requests / tokens_per_second)

    def warm_up(self, turn: Turn) -> int:
        return 100 * turn.max_tokens


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Pair(save_random_llama(tmp_path / "chat"), save_random_drafter(tmp_path / "drafter"))


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "gpus", list)


def options(out: Path, *argv: str) -> DemoOptions:
    return parse_args(["--rounds", "3", "--max-tokens", "8", "--out", str(out), *argv])


def measured(pair: Pair, machine: Machine, folder: Path, *argv: str) -> tuple[Speeds, str]:
    """The speeds, and what was printed."""
    console = Console(width=300, record=True, file=io.StringIO())
    found = measure(pair, PROMPTS, options(folder, *argv), folder / "speed", console, machine.start)
    return found, console.export_text()


def with_free_memory(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    memory = psutil.virtual_memory()._replace(available=free)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)


@pytest.mark.usefixtures("no_gpu")
def test_engines_take_turns_side_by_side(pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_free_memory(monkeypatch, 64 * GIB)
    machine = Machine()
    found, printed = measured(pair, machine, tmp_path)
    assert machine.events == [
        *(f"start {PLAIN}", f"start {REDRAFTER}"),
        *(PLAIN, REDRAFTER, REDRAFTER, PLAIN, PLAIN, REDRAFTER),
        *(f"end {PLAIN}", f"end {REDRAFTER}"),
    ]
    assert found.together
    assert found.speedup_by_round == pytest.approx([2.0, 0.5, 1.5])
    assert found.speedup == pytest.approx(1.5)
    assert found.rows[REDRAFTER]["tokens_per_second"]["median"] == pytest.approx(15.0)
    assert found.turn_with_drafts()["emitted"] == [[1, 2, 1]] * 2
    assert "3 rounds in which both engines, side by side, take a turn: 2 prompts" in printed


@pytest.mark.usefixtures("no_gpu")
def test_where_memory_is_short_each_makes_one_pass(pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_free_memory(monkeypatch, 5 * GIB // 2)
    machine = Machine()
    found, printed = measured(pair, machine, tmp_path)
    assert machine.events == [
        *(f"start {PLAIN}", PLAIN, f"end {PLAIN}"),
        *(f"start {REDRAFTER}", REDRAFTER, f"end {REDRAFTER}"),
    ]
    assert not found.together and found.speedup_by_round == [2.0]
    assert "and 2.5 GiB are free: the engines run one after the other, once each" in printed


@pytest.mark.usefixtures("no_gpu")
def test_a_known_need_counts_where_it_is_more_than_is_estimated(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_free_memory(monkeypatch, 9 * GIB)
    for needed, together in ((4 * GIB, True), (5 * GIB, False)):
        machine = Machine()
        console = Console(width=300, record=True, file=io.StringIO())
        folder = tmp_path / "speed"
        found = measure(pair, PROMPTS, options(tmp_path), folder, console, machine.start, engine_bytes=needed)
        assert found.together is together and len(found.rounds) == (3 if together else 1)
    assert "an engine needs about 5.0 GiB and 9.0 GiB are free" in console.export_text()


@pytest.mark.usefixtures("no_gpu")
def test_without_room_for_an_engine_nothing_starts(pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_free_memory(monkeypatch, GIB)
    machine = Machine()
    with pytest.raises(ValueError, match=r"an engine needs about 1\.\d GiB and 1\.0 GiB are free"):
        measured(pair, machine, tmp_path)
    assert machine.events == []


@pytest.mark.usefixtures("no_gpu")
def test_plain_vllm_is_as_installed_and_redrafter_as_it_serves(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_free_memory(monkeypatch, 64 * GIB)
    machine = Machine()
    measured(pair, machine, tmp_path)
    plain, redrafter = machine.configurations
    assert plain.speculative is None and plain.env["VLLM_USE_V2_MODEL_RUNNER"] == "0"
    assert redrafter.speculative is not None and redrafter.speculative["adaptive"] is None
    assert redrafter.speculative["model"] == str(pair.drafter)
    given = machine.plans[0].engine_options(redrafter)
    assert given[given.index("--dtype") + 1] == "bfloat16"
    # The longest prompt, the answer, and two steps of a root and its nodes.
    nodes = options(tmp_path).drafting.num_speculative_tokens
    assert given[given.index("--max-model-len") + 1] == str(4 + 8 + 2 * (1 + nodes))


@pytest.mark.usefixtures("no_gpu")
def test_rounds_of_an_earlier_demonstration_are_replaced(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_free_memory(monkeypatch, 64 * GIB)
    measured(pair, Machine(), tmp_path)
    found, _ = measured(pair, Machine(), tmp_path, "--rounds", "2")
    assert len(found.rounds) == 2 and found.speedup_by_round == pytest.approx([2.0, 0.5])


@pytest.mark.usefixtures("no_gpu")
def test_an_engine_that_fails_ends_the_other(pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_free_memory(monkeypatch, 64 * GIB)
    machine = Machine()

    def start(*given: Any) -> Engine:
        if given[1].name == REDRAFTER:
            raise ChildError("ReDrafter failed")
        return machine.start(*given)

    with pytest.raises(ChildError, match="ReDrafter failed"):
        measure(pair, PROMPTS, options(tmp_path), tmp_path / "speed", Console(quiet=True), start)
    assert machine.events == [f"start {PLAIN}", f"end {PLAIN}"]
