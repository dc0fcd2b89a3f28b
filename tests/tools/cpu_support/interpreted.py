# SPDX-License-Identifier: Apache-2.0
"""Runs a launcher of vLLM twice on equal arguments: with the stand-in, and with the interpreted kernel itself."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any

import pytest
import torch

from redrafter_cpu.detect import BACKEND_GROUP, BACKEND_NAME
from redrafter_cpu.standin import StandIn
from redrafter_cpu.triton_backend import DECISION

# Under a CUDA set-up the package is importable here but not installed, so Triton does not know its backend.
_INSTALLED = any(entry_points(group=BACKEND_GROUP, name=BACKEND_NAME))
needs_interpreter = pytest.mark.skipif(
    not (DECISION.active and _INSTALLED), reason=f"kernels are not interpreted: {DECISION.reason}"
)


def vllm_gpu(name: str) -> ModuleType:
    """A module of vLLM's V2 runner with the stand-ins in place, imported as the CPU worker imports it."""
    from redrafter_cpu.plugin import register

    register()
    importlib.import_module("vllm.v1.worker.cpu.shm")
    return importlib.import_module(f"vllm.v1.worker.gpu.{name}")


def both_ways(module: ModuleType, kernel: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Any, Any]:
    """The arguments of `call` after it, and its result: with the stand-in and with the interpreted kernel."""
    stand_in = getattr(module, kernel)
    assert isinstance(stand_in, StandIn), f"{kernel} has not been replaced"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stand_in, "function", _must_be_used(stand_in.function))
        ours = _run(call, args, kwargs)
        patch.setattr(module, kernel, stand_in.kernel)
        theirs = _run(call, args, kwargs)
    return ours, theirs


def _must_be_used(function: Callable[..., Any]) -> Callable[..., Any]:
    def checked(*args: Any, **kwargs: Any) -> None:
        assert function(*args, **kwargs) is not NotImplemented, "the stand-in gave up: both ways would be the kernel"

    return checked


def _run(call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    own_args, own_kwargs = copy.deepcopy((args, kwargs))
    result = call(*own_args, **own_kwargs)
    return own_args, own_kwargs, result


def assert_same_bits(ours: Any, theirs: Any) -> None:
    """Equal structure, types, shapes and bits; NaNs of any payload count as equal."""
    assert type(ours) is type(theirs)
    if isinstance(ours, torch.Tensor):
        assert ours.dtype == theirs.dtype
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
        if ours.is_floating_point():
            number = ~ours.isnan()
            assert torch.equal(torch.signbit(ours[number]), torch.signbit(theirs[number]))
    elif isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            assert_same_bits(value, theirs[key])
    elif isinstance(ours, list | tuple):
        assert len(ours) == len(theirs)
        for mine, other in zip(ours, theirs, strict=True):
            assert_same_bits(mine, other)
    else:
        assert ours == theirs


def poisoned(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    """A tensor of values that are not results."""
    return torch.full(shape, float("nan") if dtype.is_floating_point else -777, dtype=dtype)
