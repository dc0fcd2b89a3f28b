# SPDX-License-Identifier: Apache-2.0
"""Calls of compiled operators are compared with schemas; what the libraries' own Python has, too, is no problem."""

from pathlib import Path

import pytest
import torch

from tools.compiled_operators import Call, calls, judge, misfit

SCHEMA = torch._C.parse_schema("_C::attend(Tensor q, Tensor? mask, int window=0, *, bool causal, float cap=0.) -> ()")


def call(
    positional: int, *keywords: str, operator: str = "_C::attend", file: str = "a.py", starred: bool = False
) -> Call:
    return Call(operator, file, 7, positional, keywords, starred)


@pytest.mark.parametrize("fitting", [call(2, "causal"), call(3, "causal", "cap"), call(1, "mask", "causal")])
def test_calls_that_fit(fitting: Call) -> None:
    assert misfit(fitting, [SCHEMA]) is None


@pytest.mark.parametrize(
    ("unfit", "problem"),
    [
        (call(4, "causal"), "takes 3 arguments, and is called with 4"),
        (call(2), "also needs causal"),
        (call(1, "causal"), "also needs mask"),
        (call(2, "causal", "scale"), "has no argument scale"),
    ],
)
def test_calls_that_do_not_fit(unfit: Call, problem: str) -> None:
    assert misfit(unfit, [SCHEMA]) == problem


def test_one_overload_is_enough_and_starred_arguments_are_not_counted() -> None:
    other = torch._C.parse_schema("_C::attend.two(Tensor q, Tensor k) -> ()")
    assert misfit(call(2), [SCHEMA, other]) is None
    assert misfit(call(1, starred=True), [SCHEMA]) is None


def test_calls_are_found(tmp_path: Path) -> None:
    (tmp_path / "ops").mkdir()
    (tmp_path / "ops" / "cpu.py").write_text(
        "import torch\n"
        "def f(x, rest):\n"
        "    torch.ops._C.attend(x, None, causal=True)\n"
        "    torch.ops._moe_C.route.default(x, *rest)\n"
        "    torch.ops.vllm.ours(x)\n"
        "    torch.ops.aten.add(x, x)\n"
        "    return hasattr(torch.ops._C, 'other'), torch.ops._C.attend\n"
    )
    assert list(calls(tmp_path)) == [
        Call("_C::attend", "ops/cpu.py", 3, 2, ("causal",), False),
        Call("_moe_C::route", "ops/cpu.py", 4, 2, (), True),
    ]


def test_only_what_is_new_is_reported() -> None:
    schemas = {"_C::attend": [SCHEMA], "_C::norm": [torch._C.parse_schema("_C::norm(Tensor x) -> ()")]}
    both = [
        call(1, operator="_C::norm"),
        call(9, operator="_moe_C::for_gpus"),
        call(1, operator="_C::old_cpu"),
    ]
    new = [
        *both,
        call(9, "causal"),
        call(1, operator="_C::new_cpu"),
        call(1, operator="_C::kernel", file="v1/cpu_worker.py"),
        call(1, operator="_C::new_for_gpus"),
    ]
    assert judge(both, both, schemas).unfit == []
    verdict = judge(new, both, schemas)
    assert verdict.unfit == [
        "_C::attend takes 3 arguments, and is called with 9 (vllm/a.py:7)",
        "_C::new_cpu is not there (vllm/a.py:7)",
        "_C::kernel is not there (vllm/v1/cpu_worker.py:7)",
    ]
    # Fitting: norm; absent: for_gpus, new_for_gpus; old_cpu is a problem that both have.
    assert (verdict.fitting, verdict.absent) == (1, 2)
