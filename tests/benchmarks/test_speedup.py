# SPDX-License-Identifier: Apache-2.0
"""The speed-up's account: phases, figures, options."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.demo.processes import ChildError
from benchmarks.speedup.__main__ import Options, judge, parse_args
from benchmarks.speedup.engine import EngineProcess, Job
from benchmarks.speedup.phases import REST, DecodeSteps, Stopwatch
from redrafter_vllm.config import DraftingConfig

ASSET = Path(__file__).parents[1] / "assets" / "stdlib-llama"


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_inner_phases_are_not_counted_twice() -> None:
    clock = Clock()
    watch = Stopwatch(clock)
    clock.now += 50  # before any phase
    with watch.phase("outer"):
        clock.now += 1
        with watch.phase("inner"):
            clock.now += 2
        clock.now += 4
        with watch.phase("inner"):
            clock.now += 8
    clock.now += 50
    assert watch.seconds == {"outer": 5, "inner": 10}


def test_steps_with_prompts_do_not_count() -> None:
    clock = Clock()
    watch = Stopwatch(clock)
    steps = DecodeSteps(watch)
    prompts: list[list[str]] = [["new"], [], []]
    schedule = steps.schedule(lambda: SimpleNamespace(scheduled_new_reqs=prompts.pop(0)))

    def step() -> None:
        schedule()
        clock.now += 1
        with watch.phase("draft"):
            clock.now += 10

    for _ in range(3):
        steps.step(step)()
    assert steps.count == 2
    assert watch.seconds == {REST: 2, "draft": 20}


def turn(seconds: float, tokens: list[list[int]], steps: list[list[int]], accepted: tuple[int, ...]) -> dict[str, Any]:
    counters = {"verifications": sum(len(request) - 1 for request in steps), "accepted_at_least": accepted}
    return {"seconds": seconds, "tokens": tokens, "steps": steps, "counters": counters}


def test_figures() -> None:
    plain = [turn(seconds, [[1] * 6, [1] * 4], [[1] * 6, [1] * 4], ()) for seconds in (10.0, 20.0, 5.0)]
    # Two verifications, of 3 and 1 tokens, and one of 2.
    ours = [turn(seconds, [[1] * 5, [1, 1, 9]], [[1, 3, 1], [1, 2]], (2, 1)) for seconds in (4.0, 1.0, 8.0)]
    report = judge(plain, ours, 2, {**ours[0], "phases": {"draft": 0.0125}})
    assert report["tokens_per_second"] == {"plain": [1.0, 0.5, 2.0], "redrafter": [2.0, 8.0, 1.0]}
    assert report["speedup"] == pytest.approx(2.0)  # of the medians 2 and 1
    assert report["speedup_by_round"] == pytest.approx([2.0, 16.0, 0.5])
    assert report["tokens_per_step"] == pytest.approx(2.0)
    assert report["efficiency"] == pytest.approx(1.0)
    assert report["acceptance_by_depth"] == pytest.approx([2 / 3, 1 / 3])
    assert (report["same_requests"], report["requests"]) == (0, 2)
    assert report["milliseconds_per_step"] == {"draft": pytest.approx(12.5)}


def test_batches_are_full() -> None:
    options = Options(Path("t"), Path("d"), DraftingConfig(2, 2), prompts=6, batches=(1, 4, 16))
    assert [options.turn(batch).prompts for batch in options.batches] == [6, 8, 16]
    assert options.engine["max_num_seqs"] == 16


def test_options_from_the_command_line() -> None:
    options = parse_args(["--target", str(ASSET), "--beam-width", "2", "--nodes", "6", "--eager"])
    assert options.drafting == DraftingConfig(2, 4, 6)
    assert options.drafter == ASSET / "redrafter"
    assert options.engine["enforce_eager"] is True


@pytest.mark.parametrize(
    ("flag", "value"), [("--rounds", "0"), ("--new-tokens", "1"), ("--batch", "0"), ("--beam-width", "65")]
)
def test_impossible_options_are_refused(flag: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_args(["--target", str(ASSET), flag, value])
    assert flag.strip("-").replace("-", "_").rstrip("s") in capsys.readouterr().err


def test_failed_engine_shows_its_log(tmp_path: Path) -> None:
    job = Job("broken", str(tmp_path / "nowhere"), None, {}, [[1, 2]], 2, {"HF_HUB_OFFLINE": "1"})
    with EngineProcess(job, tmp_path / "log") as engine, pytest.raises(ChildError, match=r"(?s)broken failed.*nowhere"):
        engine.wait_until_ready()
