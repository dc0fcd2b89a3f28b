# SPDX-License-Identifier: Apache-2.0
"""The GPU check: stages that crash, hang or have passed."""

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from benchmarks.assets import ROOT
from benchmarks.gpu_check import __main__ as gpu_check
from benchmarks.gpu_check.__main__ import STAGES, Found, Options, Stage, main, parse_args, print_table
from benchmarks.gpu_check.stages import (
    Call,
    kernels,
    outcome_file,
)
from benchmarks.gpu_check.stages.bundle import pack, unpack
from benchmarks.gpu_check.stages.suite import run_files
from redrafter_vllm.bench.child import ChildError

CONSOLE = Console(quiet=True)
STAGE = Stage("machine", "something", 30)


def options(out: Path, *, again: bool = False, seconds: float = 100, stages: tuple[Stage, ...] = (STAGE,)) -> Options:
    return Options("cpu", stages, seconds, again, out)


def run_stages(options: Options, console: Console) -> Found:
    found: Found = {}
    gpu_check.run_stages(options, console, found)
    return found


def call(scratch: Path, seconds: float = 100.0) -> Call:
    scratch.mkdir(parents=True, exist_ok=True)
    return Call("cpu", scratch, time.monotonic() + seconds)


@pytest.fixture
def fake_stage(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], list[list[str]]]:
    """`fake_stage(outcome)`: stages return or raise `outcome`; the result is the list of their commands."""

    def install(outcome: Any) -> list[list[str]]:
        commands: list[list[str]] = []

        def run_to_end(
            command: list[str], log: Path, env: Any, what: str, console: Console, limit: float, folder: Path
        ) -> None:
            commands.append(command)
            if isinstance(outcome, Exception):
                raise outcome
            outcome_file(Path(command[-1], command[-4])).write_text(json.dumps(outcome))

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


def test_findings_with_other_code_are_kept_and_marked(
    fake_stage: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = fake_stage({"passed": True, "summary": "fine", "figures": {}})
    first = run_stages(options(tmp_path), CONSOLE)
    monkeypatch.setattr(gpu_check, "code_digest", lambda: "other")
    assert run_stages(options(tmp_path), CONSOLE)["machine"] == first["machine"] | {"status": "passed with other code"}
    assert len(commands) == 1
    assert run_stages(options(tmp_path, again=True), CONSOLE)["machine"]["status"] == "passed"


def test_the_code_digest_depends_on_file_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu_check, "ROOT", tmp_path)
    (tmp_path / "redrafter_vllm").mkdir()
    (tmp_path / "redrafter_vllm" / "verify.py").write_text("1")
    before = gpu_check.code_digest()
    assert gpu_check.code_digest() == before
    (tmp_path / "redrafter_vllm" / "verify.py").rename(tmp_path / "redrafter_vllm" / "walk.py")
    assert gpu_check.code_digest() != before


def test_failed_stage_is_run_again(fake_stage: Any, tmp_path: Path) -> None:
    commands = fake_stage({"passed": False, "summary": "slow", "figures": {}})
    assert run_stages(options(tmp_path), CONSOLE)["machine"]["status"] == "FAILED"
    run_stages(options(tmp_path), CONSOLE)
    assert len(commands) == 2


def test_a_crash_does_not_stop_the_other_stages(fake_stage: Any, tmp_path: Path) -> None:
    fake_stage(ChildError("it crashed"))
    stages = (STAGE, Stage("kernels", "more", 30))
    found = run_stages(options(tmp_path, stages=stages), CONSOLE)
    assert [stage["status"] for stage in found.values()] == ["FAILED", "FAILED"]
    assert "it crashed" in found["machine"]["summary"]


def test_a_stopped_stage_keeps_its_figures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def run_to_end(command: list[str], *_: Any) -> None:
        Call("cpu", Path(command[-1], command[-4]), 0.0).keep({"rows": [1, 2]})
        raise ChildError("it took more than 30 s")

    monkeypatch.setattr(gpu_check, "run_to_end", run_to_end)
    found = run_stages(options(tmp_path), CONSOLE)["machine"]
    assert (found["status"], found["figures"]) == ("FAILED", {"rows": [1, 2]})
    assert json.loads((tmp_path / "machine.json").read_text()) == found


def test_an_archive_is_continued_from(fake_stage: Any, tmp_path: Path) -> None:
    commands = fake_stage({"passed": True, "summary": "fine", "figures": {"x": 1}})
    archive, here, there = tmp_path / "a.tar.gz", tmp_path / "here", tmp_path / "there"
    given = ["--device", "cpu", "--only", "machine", "no_sync"]
    assert main([*given, "--out", str(here), "--bundle", str(archive)]) == 0
    assert len(commands) == 2
    assert main([*given, "--out", str(there), "--resume", str(archive)]) == 0
    assert len(commands) == 2
    assert (there / "cpu" / "machine.json").read_text() == (here / "cpu" / "machine.json").read_text()


def test_the_archive_contains_no_weights(tmp_path: Path) -> None:
    folder, record = tmp_path / "out", tmp_path / "results" / "record.json"
    kept = ["speed.json", "speed.outcome", "speed.log", "speed/int8.log"]
    for name in [*kept, "speed/test.xml", "speed/inflated/config.json", "speed/inflated/model.safetensors"]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    record.parent.mkdir()
    record.write_text("{}")
    pack(folder, tmp_path / "new" / "a.tar.gz", record)
    with tarfile.open(tmp_path / "new" / "a.tar.gz") as tar:
        assert sorted(tar.getnames()) == sorted([*kept, "record/record.json"])
    unpack(tmp_path / "new" / "a.tar.gz", tmp_path / "again")
    assert (tmp_path / "again" / "speed" / "int8.log").read_text() == "speed/int8.log"


@pytest.mark.process
def test_a_terminated_check_writes_its_archive(tmp_path: Path) -> None:
    archive = tmp_path / "a.tar.gz"
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--device", "cpu", "--only", "machine", "kernel_times"]
    child = subprocess.Popen([*command, "--out", str(tmp_path), "--bundle", str(archive)], cwd=ROOT)
    try:
        for _ in range(600):
            if (tmp_path / "cpu" / "kernel_times.log").exists():
                break
            time.sleep(0.1)
        child.send_signal(signal.SIGTERM)
        assert child.wait(60) == 128 + signal.SIGTERM
    finally:
        child.kill()
    with tarfile.open(archive) as tar:
        names = tar.getnames()
    assert {"machine.json", "machine.outcome", "kernel_times.log"} <= set(names)
    assert any(name.startswith("gpu-check_") for name in names)


def test_no_stage_starts_without_time(fake_stage: Any, tmp_path: Path) -> None:
    commands = fake_stage({"passed": True, "summary": "", "figures": {}})
    assert run_stages(options(tmp_path, seconds=5), CONSOLE)["machine"]["status"] == "not run"
    assert not commands


def test_every_stage_exists() -> None:
    import importlib

    for stage in STAGES:
        assert callable(importlib.import_module(f"benchmarks.gpu_check.stages.{stage.name}").run)


@pytest.mark.process
def test_a_real_stage_and_its_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--device", "cpu", "--only", "machine", "--out", str(tmp_path)]) == 0
    (report,) = (tmp_path / "cpu").glob("gpu-check_*.json")
    stage = json.loads(report.read_text())["stages"]["machine"]
    assert stage["status"] == "passed" and stage["figures"]["bandwidth"] > 1e8
    print_table({"machine": stage}, Console())
    assert "GB/s" in capsys.readouterr().out


def test_a_missing_gpu_is_an_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit):
        parse_args([])
    assert "no CUDA device was found" in capsys.readouterr().err


@pytest.mark.process
def test_failing_tests_fail_the_stage(tmp_path: Path) -> None:
    good, bad = tmp_path / "test_good.py", tmp_path / "test_bad.py"
    good.write_text("def test_a(): pass\ndef test_b(): pass\n")
    bad.write_text("def test_c(): assert 'the reason' == ''\n")
    root = ("--rootdir", str(tmp_path), "-c", "/dev/null")
    stage = call(tmp_path / "suite")
    assert run_files(stage, [good], *root).summary == "2 passed, 0 skipped, 0 failed"
    outcome = run_files(stage, [good, bad], *root)
    assert not outcome.passed and "the reason" in outcome.summary


@pytest.mark.process
def test_files_end_before_their_stage_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The result of a file that has ended before is kept."""
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    good, endless = tmp_path / "test_good.py", tmp_path / "test_endless.py"
    good.write_text("def test_a(): pass\n")
    endless.write_text("import time\ndef test_b(): time.sleep(600)\n")
    stage = call(tmp_path / "suite", seconds=15.0)
    outcome = run_files(stage, [endless, good], "--rootdir", str(tmp_path), "-c", "/dev/null")
    assert stage.left > 0 and "stopped after" in outcome.summary
    kept = json.loads(outcome_file(stage.scratch).read_text())
    assert not kept["passed"] and kept["figures"]["files"]["test_good.py"]["tests"] == 1
    assert kept["figures"] == outcome.figures and outcome.figures["files"]["test_endless.py"]["errors"] == 1


def test_the_kernel_stage_runs_ops_and_attention(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given: list[Path] = []
    monkeypatch.setattr(kernels, "run_files", lambda call, files: given.extend(files))
    kernels.run(Call("cuda", tmp_path, 0.0))
    folders = {file.parent.relative_to(ROOT / "tests").as_posix() for file in given}
    assert folders == {"ops", "integration/attention"} and all(file.is_file() for file in given)
    given.clear()
    kernels.run(Call("cpu", tmp_path, 0.0))
    assert len(given) == 1 and given[0].is_file()
