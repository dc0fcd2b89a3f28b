# SPDX-License-Identifier: Apache-2.0
"""The driver half of the backend. Triton takes the one concrete `DriverBase` that this module holds."""

from __future__ import annotations

import importlib
from typing import Any

from triton.backends import compiler as _triton_compiler
from triton.backends import driver as _triton_driver

from redrafter_cpu.detect import BACKEND_NAME, other_cpu_backend
from redrafter_cpu.triton_backend import DECISION


class _InterpretedDriver(_triton_driver.DriverBase):
    """A device without streams or queues: the process itself."""

    @classmethod
    def is_active(cls) -> bool:
        return DECISION.active

    def map_python_to_cpp_type(self, ty: str) -> str:
        return "void*" if ty.startswith("*") else ty

    def get_current_target(self) -> _triton_compiler.GPUTarget:
        return _triton_compiler.GPUTarget(BACKEND_NAME, 0, 32)

    def get_active_torch_device(self) -> Any:
        import torch  # not at the top: torch may be what is importing Triton

        return torch.device("cpu")

    def get_current_device(self) -> int:
        return 0

    def set_current_device(self, device: int) -> None:
        return None

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_benchmarker(self) -> Any:
        return _time_once


def _time_once(kernel_call: Any, *, quantiles: list[float], **_: Any) -> list[float]:
    """Autotuning an interpreted kernel says nothing about speed: run it once and call all choices equal."""
    kernel_call()
    return [1.0 for _ in quantiles]


_real = other_cpu_backend()
if _real is not None:
    _theirs = importlib.import_module(f"{_real.value}.driver")
    globals().update({k: v for k, v in vars(_theirs).items() if not k.startswith("__")})
    del _InterpretedDriver
