# SPDX-License-Identifier: Apache-2.0
"""The script for a GPU day: stages that crash, hang, have passed; and how their findings are judged."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from benchmarks import gpu_check
from benchmarks.demo.processes import ChildError
from benchmarks.gpu_check import STAGES, Options, Stage, main, parse_args, print_table, run_stages
from benchmarks.gpu_stages import draft_round, identity, kernel_times, machine, speed
from benchmarks.gpu_stages.engines import Difference, differences
from benchmarks.gpu_stages.suite import run_files

CONSOLE = Console(quiet=True)
STAGE = Stage("machine", "something", 30)


def options(out: Path, *, again: bool = False, seconds: float = 100, stages: tuple[Stage, ...] = (STAGE,)) -> Options:
    return Options("cpu", stages, seconds, again, out)


@pytest.fixture
def fake_stage(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], list[list[str]]]:
    """`fake_stage(outcome)`: stages end with it, or raise it; gives the list of their commands."""

    def install(outcome: Any) -> list[list[str]]:
        commands: list[list[str]] = []

        def run_to_end(command: list[str], log: Path, env: Any, what: str, console: Console, limit: float) -> None:
            commands.append(command)
            if isinstance(outcome, Exception):
                raise outcome
            Path(command[-1]).write_text(json.dumps(outcome))

        monkeypatch.setattr(gpu_check, "run_to_end", run_to_end)
        return commands

    return install


def test_passed_stage_is_not_run_again(fake_stage: Any, tmp_path: Path) -> None:
    commands = fake_stage({"passed": True, "summary": "fine", "figures": {"x": 1}})
    first = run_stages(options(tmp_path), CONSOLE)
    assert run_stages(options(tmp_path), CONSOLE) == first
    assert (first["machine"]["status"], first["machine"]["figures"]) == ("passed", {"x": 1})
    assert len(commands) == 1
    run_stages(options(tmp_path, again=True), CONSOLE)
    assert len(commands) == 2


def test_what_other_code_passed_is_kept_and_said_to_be_old(
    fake_stage: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = fake_stage({"passed": True, "summary": "fine", "figures": {}})
    first = run_stages(options(tmp_path), CONSOLE)
    monkeypatch.setattr(gpu_check, "code_digest", lambda: "other")
    assert run_stages(options(tmp_path), CONSOLE)["machine"] == first["machine"] | {"status": "passed with other code"}
    assert len(commands) == 1
    assert run_stages(options(tmp_path, again=True), CONSOLE)["machine"]["status"] == "passed"


def test_code_is_all_that_a_stage_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu_check, "ROOT", tmp_path)
    (tmp_path / "redrafter_vllm").mkdir()
    (tmp_path / "redrafter_vllm" / "verifier.py").write_text("1")
    before = gpu_check.code_digest()
    assert gpu_check.code_digest() == before
    (tmp_path / "redrafter_vllm" / "verifier.py").rename(tmp_path / "redrafter_vllm" / "walk.py")
    assert gpu_check.code_digest() != before


def test_failed_stage_is_run_again(fake_stage: Any, tmp_path: Path) -> None:
    commands = fake_stage({"passed": False, "summary": "slow", "figures": {}})
    assert run_stages(options(tmp_path), CONSOLE)["machine"]["status"] == "FAILED"
    run_stages(options(tmp_path), CONSOLE)
    assert len(commands) == 2


def test_crash_leaves_the_other_stages(fake_stage: Any, tmp_path: Path) -> None:
    fake_stage(ChildError("it fell over"))
    stages = (STAGE, Stage("kernels", "more", 30))
    found = run_stages(options(tmp_path, stages=stages), CONSOLE)
    assert [stage["status"] for stage in found.values()] == ["FAILED", "FAILED"]
    assert "it fell over" in found["machine"]["summary"]


def test_nothing_begins_without_time(fake_stage: Any, tmp_path: Path) -> None:
    commands = fake_stage({"passed": True, "summary": "", "figures": {}})
    assert run_stages(options(tmp_path, seconds=5), CONSOLE)["machine"]["status"] == "not run"
    assert not commands


def test_every_stage_exists_and_fits() -> None:
    import importlib

    for stage in STAGES:
        assert callable(importlib.import_module(f"benchmarks.gpu_stages.{stage.name}").run)


def test_a_real_stage_and_its_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--device", "cpu", "--only", "machine", "--out", str(tmp_path)]) == 0
    (report,) = (tmp_path / "cpu").glob("gpu-check_*.json")
    stage = json.loads(report.read_text())["stages"]["machine"]
    assert stage["status"] == "passed" and stage["figures"]["bandwidth"] > 1e8
    print_table({"machine": stage}, Console())
    assert "GB/s" in capsys.readouterr().out


def test_no_gpu_is_said_at_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit):
        parse_args([])
    assert "there is no CUDA device here" in capsys.readouterr().err


def test_bandwidth_counts_reading_and_writing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ticks = iter(range(1000))
    monkeypatch.setattr(machine.time, "perf_counter", lambda: float(next(ticks)))
    assert machine.run("cpu", tmp_path).figures["bandwidth"] == 2 * machine.COPY_BYTES["cpu"]


def test_differences_and_near_ties() -> None:
    plain = [[1, 2, 3], [4, 5], [6, 7], [8]]
    other = [[1, 2, 3], [4, 9], [6, 8], [8, 8]]
    logprobs = [[], [{4: -0.1}, {5: -0.7, 9: -0.7004}], [{6: 0.0}, {7: -0.1, 5: -3.0}], [{8: 0.0}]]
    found = differences(plain, other, logprobs)
    assert [(d.request, d.place) for d in found] == [(1, 1), (2, 1), (3, 1)]
    assert found[0].gap == pytest.approx(0.0004) and found[1].gap is None and found[2].gap is None
    assert identity._near(found[0]) and not identity._near(Difference(0, 0, 0.1)) and not identity._near(found[1])


@pytest.mark.parametrize(
    ("efficiency", "speedups", "passed"),
    [(0.9, (2.3, 1.0), True), (0.89, (2.3, 1.0), False), (0.95, (2.3, 0.99), False)],
)
def test_speed_must_pay_at_every_batch(efficiency: float, speedups: tuple[float, float], passed: bool) -> None:
    rows = [
        {"batch": batch, "speedup": speedup, "efficiency": efficiency}
        for batch, speedup in zip((1, 64), speedups, strict=True)
    ]
    assert speed.judge({"results": rows}, "some-shape").passed is passed


def test_failing_tests_fail_the_stage(tmp_path: Path) -> None:
    good, bad = tmp_path / "test_good.py", tmp_path / "test_bad.py"
    good.write_text("def test_a(): pass\ndef test_b(): pass\n")
    bad.write_text("def test_c(): assert 'the reason' == ''\n")
    root = ("--rootdir", str(tmp_path), "-c", "/dev/null")
    assert run_files([good], tmp_path, *root, limit=60).summary == "2 passed, 0 skipped, 0 failed"
    outcome = run_files([good, bad], tmp_path, *root, limit=60)
    assert not outcome.passed and "the reason" in outcome.summary


def test_kernel_times_of_a_real_tree(tmp_path: Path) -> None:
    sizes = kernel_times.Sizes(batch=2, context=20, nodes=5)
    batch = kernel_times.step_of(sizes, 2, "cpu")
    assert batch.query_start_loc.tolist() == [0, 6, 12] and batch.seq_lens.tolist() == [26, 26]
    # Nodes 0 and 1 hang on the root, 2 and 3 on node 0, 4 on node 1.
    paths = [[0], [1], [0, 2], [0, 3], [1, 4]]
    assert [row.nonzero().flatten().tolist() for row in batch.ancestors[1]] == paths
    outcome = kernel_times.run("cpu", tmp_path / "kernel_times")
    assert outcome.passed and {case["rival"] for case in outcome.figures["cases"]} == {None}
    assert all(case["seconds"] > 0 and case["floor"] > 0 for case in outcome.figures["cases"])


def test_drafting_round_against_its_floor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draft_round, "BATCHES", (1,))
    monkeypatch.setattr(draft_round, "seconds", lambda call, device: call() and 1.0)
    for speed_, passed in ((1.0, True), (1e18, False)):
        monkeypatch.setattr(draft_round, "bandwidth", lambda device, scratch, speed_=speed_: speed_)
        assert draft_round.run("cpu", tmp_path).passed is passed
