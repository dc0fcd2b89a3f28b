# SPDX-License-Identifier: Apache-2.0
"""Whether the reference or the kernel of an op runs, for a package made for this test."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from redrafter_vllm.ops import dispatch


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


def op(pair: Pair, count: int = 1) -> str:
    """The reference."""
    return f"reference {count}"


@pytest.fixture
def dispatched(monkeypatch: pytest.MonkeyPatch) -> tuple[Callable[..., str], ModuleType]:
    kernel = ModuleType("made_up.kernel")
    kernel.op = lambda pair, count=1: f"kernel {count}"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "made_up", ModuleType("made_up"))
    monkeypatch.setitem(sys.modules, "made_up.kernel", kernel)
    monkeypatch.setattr(op, "__module__", "made_up.reference")
    return dispatch.dispatch(op), kernel


CPU, META = torch.zeros(1), torch.zeros(1, device="meta")


def test_the_reference_runs_on_a_cpu(dispatched: tuple[Callable[..., str], ModuleType]) -> None:
    chosen, _ = dispatched
    assert chosen(Pair(CPU, CPU), 2) == "reference 2"
    assert chosen.__doc__ == "The reference."


def test_the_kernel_runs_on_a_gpu(
    dispatched: tuple[Callable[..., str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first tensor decides, inside of a tuple too, by position or by name."""
    chosen, _ = dispatched
    monkeypatch.setattr(Tensor, "is_cuda", property(lambda self: self.device.type == "meta"))
    assert chosen(Pair(META, CPU), 2) == "kernel 2"
    assert chosen(count=3, pair=Pair(META, CPU)) == "kernel 3"
    assert chosen(Pair(CPU, META)) == "reference 1"


def test_a_kernel_may_refuse_arguments(
    dispatched: tuple[Callable[..., str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen, kernel = dispatched
    monkeypatch.setattr(dispatch, "_ALWAYS", True)
    kernel.supports = lambda pair, count=1: count < 3  # type: ignore[attr-defined]
    assert [chosen(Pair(CPU, CPU), count=count) for count in (2, 3)] == ["kernel 2", "reference 3"]


def test_a_kernel_in_cpp_runs_on_a_cpu_unless_it_refuses(
    dispatched: tuple[Callable[..., str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen, _ = dispatched
    native = ModuleType("made_up.native")
    native.op = lambda pair, count=1: f"native {count}"  # type: ignore[attr-defined]
    native.supports = lambda pair, count=1: count < 3  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "made_up.native", native)
    assert chosen(Pair(CPU, CPU), 2) == "native 2"
    assert chosen(Pair(CPU, CPU), 3) == "reference 3"


def test_a_kernel_that_cannot_be_imported_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_op").mkdir()
    (tmp_path / "broken_op" / "native.py").write_text("import there_is_no_such_module")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(op, "__module__", "broken_op.reference")
    with pytest.raises(ModuleNotFoundError, match="there_is_no_such_module"):
        dispatch.dispatch(op)(Pair(CPU, CPU))
