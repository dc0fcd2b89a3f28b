# SPDX-License-Identifier: Apache-2.0
"""What a test starts, as markers: given by the fixtures it uses, and checked while it runs.

`make check` leaves out tests with one of these markers. A test without the marker fails where it starts the thing.
"""

import os
import sys
from collections.abc import Callable
from functools import wraps
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

STARTS = ("compiles", "engine", "server", "ray", "process")

BY_FIXTURE = {"make_engine": "engine", "server": "server", "ray_session": "ray", "compiled": "compiles"}

# A signal interrupts a step that never ends, so that its test fails alone. The default, a thread, ends the process, and
# with it the engines and the Ray session that later tests share.
TIMEOUT = pytest.mark.timeout(method="signal")
ENGINE_TIMEOUT = pytest.mark.timeout(300, method="signal")

ENGINE_FOLDER = Path(__file__).parent / "engine"

_running: set[str] | None = None  # markers of the test that is being run


def mark(item: pytest.Item) -> None:
    """Adds the markers that follow from the test's fixtures."""
    for fixture, name in BY_FIXTURE.items():
        if fixture in getattr(item, "fixturenames", ()):
            item.add_marker(name)
    if _starts(item):
        item.add_marker(ENGINE_TIMEOUT if item.get_closest_marker("engine") is not None else TIMEOUT)


def rank(item: pytest.Item) -> int:
    """Where the item's file belongs among all: long ones first, so that no process is left with one at the end.

    Tests of tests/engine share engines, which need vLLM's process groups. Files whose engines shut down, and these
    groups with them, come after all of those.
    """
    if item.path.is_relative_to(ENGINE_FOLDER):
        return 0
    costs = [*STARTS, "slow"]
    return min(
        (1 + costs.index(mark.name) for mark in item.iter_markers() if mark.name in costs), default=1 + len(costs)
    )


def begin(item: pytest.Item) -> None:
    """From here until `end` the test may start only what its markers name."""
    global _running
    _running = _starts(item)
    _guard_engines()


def end() -> None:
    global _running
    _running = None


def _starts(item: pytest.Item) -> set[str]:
    return {name for name in STARTS if item.get_closest_marker(name) is not None}


def _require(names: tuple[str, ...], started: str) -> None:
    if _running is not None and not _running & set(names):
        pytest.fail(f"starts {started} without one of the markers {', '.join(names)}", pytrace=False)


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "subprocess.Popen" and _is_python(Path(os.fsdecode(arguments[0]))):
        _require(STARTS, str(arguments[0]))


def _is_python(program: Path) -> bool:
    """An interpreter, or a command that is installed beside this one."""
    return program.name.startswith("python") or program.parent == Path(sys.executable).parent


def _guarded_start(child: BaseProcess) -> None:
    _require(STARTS, f"the process {child.name}")
    _start(child)


def _guard_engines() -> None:
    """Once vLLM's engine client is imported, which most tests do not need; an engine of any kind has one."""
    module = sys.modules.get("vllm.v1.engine.core_client")
    if module is None or hasattr(module.EngineCoreClient, "guarded"):
        return
    module.EngineCoreClient.guarded = True
    for name in ("make_client", "make_async_mp_client"):
        original = getattr(module.EngineCoreClient, name)
        setattr(module.EngineCoreClient, name, staticmethod(_guarded(original)))


def _guarded(make: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(make)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        _require(("engine", "server"), "an engine")
        return make(*args, **kwargs)

    return guarded


sys.addaudithook(_audit)
_start = BaseProcess.start
BaseProcess.start = _guarded_start  # type: ignore[method-assign]
