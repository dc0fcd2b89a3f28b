# SPDX-License-Identifier: Apache-2.0
"""Rebindings apply once, as their modules are imported, and fail in one clear sentence when the target has changed."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from redrafter_cpu.rebind import RebindError, Rebinding, install, vllm_version
from redrafter_cpu.runner_v1 import with_native_kernels
from redrafter_cpu.standin import StandIn
from redrafter_cpu.table import REBINDINGS, lacking, rebindings
from tests.tools.cpu_support.interpreted import needs_interpreter


def rebinding(
    module: str, name: str = "answer", make: Any = lambda original: original + 1, for_speed: bool = False
) -> Rebinding:
    return Rebinding(module, name, make, "a test", ("0.32", "0.33"), "never", for_speed)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    name = f"rebound_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text("answer = 41\n")
    (tmp_path / f"{name}_user.py").write_text(f"from {name} import answer\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield name
    for loaded in (name, f"{name}_user"):
        sys.modules.pop(loaded, None)


def test_importers_by_name_see_the_rebound_one(module: str) -> None:
    install([rebinding(module)])
    assert importlib.import_module(f"{module}_user").answer == 42


def test_a_loaded_module_is_rebound_at_once_and_only_once(module: str) -> None:
    loaded = importlib.import_module(module)
    install([rebinding(module)])
    install([rebinding(module)])
    assert loaded.answer == 42


def test_other_modules_are_left_alone(module: str) -> None:
    install([rebinding(module)])
    assert not any(name in sys.modules for name in (module, f"{module}_user"))


def test_a_name_that_is_gone(module: str) -> None:
    install([rebinding(module, "question")])
    with pytest.raises(RebindError, match=rf"{module}\.question, but it is not there: .* vLLM 0\.32 and 0\.33"):
        importlib.import_module(module)


class Kernel:
    """What the stand-in needs to know of a Triton kernel."""

    def __init__(self) -> None:
        self.launches: list[tuple[Any, ...]] = []

    @staticmethod
    def fn(pointer: Any, size: int, BLOCK: int = 8) -> None:
        raise AssertionError("not to be called")

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *args, **kwargs: self.launches.append((grid, args, kwargs))


def test_a_stand_in_takes_the_kernels_arguments() -> None:
    calls: list[tuple[Any, ...]] = []

    def function(grid: tuple[int, ...], pointer: Any, size: int, BLOCK: int) -> None:
        calls.append((grid, pointer, size, BLOCK))

    StandIn(Kernel(), function)[(2, 3)]("p", size=5, num_warps=4)
    assert calls == [((2, 3), "p", 5, 8)]


def test_a_stand_in_that_gives_up_runs_the_kernel() -> None:
    kernel = Kernel()
    StandIn(kernel, lambda grid, pointer, size, BLOCK: NotImplemented)[(1,)]("p", 5, BLOCK=16)
    assert kernel.launches == [((1,), ("p", 5), {"BLOCK": 16})]


def test_a_kernel_with_other_parameters_is_refused(module: str) -> None:
    sys.modules.pop(module, None)

    def make(original: Any) -> StandIn:
        return StandIn(Kernel(), lambda grid, pointer, length, BLOCK: None)

    install([rebinding(module, make=make)])
    with pytest.raises(RebindError, match=r"its parameters are \['pointer', 'size', 'BLOCK'\], expected"):
        importlib.import_module(module)


@pytest.mark.parametrize(("name", "problem"), [("answer", "its parameters are"), ("question", "it is not there")])
def test_what_is_for_speed_only_is_left_out_with_one_line(
    module: str, name: str, problem: str, vllm_log: pytest.LogCaptureFixture
) -> None:
    def make(original: Any) -> StandIn:
        return StandIn(Kernel(), lambda grid, pointer, length, BLOCK: None)

    install([rebinding(module, name, make, for_speed=True)])
    assert importlib.import_module(module).answer == 41
    (line,) = (record.getMessage() for record in vllm_log.records)
    assert line.startswith(f"redrafter-cpu has a faster {module}.{name}, but {problem}") and "\n" not in line
    assert line.endswith("The kernel is interpreted, with the same results.")


def test_parameters_of_a_stand_ins_own() -> None:
    calls: list[bool] = []

    def function(grid: tuple[int, ...], pointer: Any, size: int, BLOCK: int, *, newer: bool = False) -> None:
        calls.append(newer)

    for chosen in (function, partial(function, newer=True)):
        StandIn(Kernel(), chosen)[(1,)]("p", 5)
    assert calls == [False, True]


def test_what_is_not_a_kernel_is_refused() -> None:
    with pytest.raises(TypeError, match="not a Triton kernel"):
        StandIn(41, lambda grid: None)


def test_a_runner_with_other_parameters_is_refused() -> None:
    class Runner:
        def __init__(self, configuration: Any) -> None: ...

    with pytest.raises(TypeError, match=r"__init__ are \['self', 'configuration'\], expected"):
        with_native_kernels(Runner)


def test_every_entry_says_why_and_until_when() -> None:
    targets = [(entry.module, entry.name, version) for entry in REBINDINGS for version in entry.versions]
    assert len(set(targets)) == len(targets)
    with pytest.raises(ValueError, match="needs its reason"):
        Rebinding("m", "n", lambda original: original, "", ("0.32",), "never")
    with pytest.raises(ValueError, match="needs its versions"):
        Rebinding("m", "n", lambda original: original, "a test", (), "never")


@pytest.mark.parametrize("vllm", ["0.32.0", "0.32.1+cpu", "0.33.0+cpu.overlay", "0.33.1rc2"])
def test_a_version_has_its_own_entries(vllm: str) -> None:
    chosen = rebindings(vllm)
    assert {(entry.module, entry.name) for entry in chosen} == {(entry.module, entry.name) for entry in REBINDINGS}
    assert all(vllm[:4] in entry.versions for entry in chosen)
    assert lacking(vllm) == []


def test_an_unknown_version_gets_the_newest_entries() -> None:
    assert rebindings("0.99.0") == rebindings("0.33.0") != rebindings("0.32.0")
    assert len(lacking("0.99.0")) == len(rebindings("0.99.0"))


@needs_interpreter
def test_the_installed_version_is_known() -> None:
    """A version without entries of its own gets those of the newest known one, which may not fit or not be right."""
    without = lacking(vllm_version())
    assert not without, f"no entries for vLLM {vllm_version()}: {', '.join(without)}"


@needs_interpreter
@pytest.mark.parametrize("entry", rebindings(vllm_version()), ids=lambda entry: entry.name)
def test_the_installed_vllm_has_every_target(entry: Rebinding) -> None:
    from redrafter_cpu.plugin import register

    register()
    importlib.import_module("vllm.v1.worker.cpu.shm")
    rebound = getattr(importlib.import_module(entry.module), entry.name)
    if entry.name == "HAS_TRITON":
        assert rebound is False
    elif entry.name == "CPUModelRunner":
        assert hasattr(rebound.__init__, "__wrapped__")
    else:
        assert isinstance(rebound, StandIn), f"vLLM {vllm_version()} lacks a stand-in for {entry.module}.{entry.name}"
