# SPDX-License-Identifier: Apache-2.0
"""Children and grandchildren end with their block, and errors show the log."""

import os
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from redrafter_vllm.bench.child import ChildError, run_to_end, running, summary, tail

GRANDCHILD = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
time.sleep(60)
"""


def has_ended(pid: int, within: float = 5.0) -> bool:
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
            if state == "Z":  # a zombie: ended, its status not read yet
                return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.process
@pytest.mark.parametrize("problem", [None, RuntimeError, KeyboardInterrupt, SystemExit])
def test_children_end_with_the_block(tmp_path: Path, problem: type[BaseException] | None) -> None:
    log = tmp_path / "log"

    def body() -> None:
        with running([sys.executable, "-c", GRANDCHILD], log, {}) as child:
            pids.append(child.pid)
            while not log.read_text().endswith("\n"):
                time.sleep(0.05)
            pids.append(int(log.read_text()))
            if problem is not None:
                raise problem

    pids: list[int] = []
    if problem is None:
        body()
    else:
        with pytest.raises(problem):
            body()
    assert len(pids) == 2
    assert all(map(has_ended, pids))


@pytest.mark.process
def test_a_failure_shows_the_end_of_the_log(tmp_path: Path) -> None:
    script = "import sys; print('first'); [print(i) for i in range(30)]; sys.exit('no such drafter')"
    with pytest.raises(ChildError, match="the run failed with status 1") as caught:
        run_to_end([sys.executable, "-c", script], tmp_path / "log", {}, "the run", Console(quiet=True))
    assert "no such drafter" in str(caught.value)
    assert str(tmp_path / "log") in str(caught.value)
    assert "first" not in str(caught.value)


@pytest.mark.process
def test_a_run_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    with pytest.raises(ChildError, match="took more than 0 s"):
        run_to_end(command, tmp_path / "log", {}, "the run", Console(quiet=True), limit=0.4)


def test_tail_of_a_missing_log(tmp_path: Path) -> None:
    assert tail(tmp_path / "absent").endswith(":\n")


@pytest.mark.parametrize(
    ("logged", "reason"),
    [
        ("Traceback\n  File x\nValueError: no such drafter\n", "ValueError: no such drafter"),
        (
            "(EngineCore pid=7) ERROR 11-28 [core.py:1] RuntimeError: out of memory\n"
            "(APIServer pid=6) RuntimeError: Engine core initialization failed. See root cause above.\n",
            "RuntimeError: out of memory",
        ),
        ("usage: vllm\nvllm serve: error: unrecognized arguments: --no\n", "error: unrecognized arguments: --no"),
        (
            "pydantic_core._pydantic_core.ValidationError: 1 validation error for SpeculativeConfig\n"
            "  Value error, bad method [type=value_error, input_value={}]\n    For further information\n",
            "Value error, bad method",
        ),
        ("started\nKilled\n", "Killed"),
        ("", "it said nothing"),
    ],
)
def test_an_error_in_one_line(logged: str, reason: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(logged)
    error = ChildError(f"the server ended with status 1.\n{tail(log)}")
    assert summary(error) == f"the server ended with status 1: {reason} ({log})"


def test_an_error_without_a_log() -> None:
    assert summary(ChildError("2 requests failed: too long")) == "2 requests failed: too long"
