# SPDX-License-Identifier: Apache-2.0
"""The compiler half of the backend. Triton takes the one concrete `BaseBackend` that this module holds."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

from triton.backends import compiler as _triton_compiler

from redrafter_cpu.detect import BACKEND_NAME, other_cpu_backend


class _InterpretedBackend(_triton_compiler.BaseBackend):
    """What Triton needs of a backend before it compiles; compiling is an error."""

    @staticmethod
    def supports_target(target: _triton_compiler.GPUTarget) -> bool:
        return target.backend == BACKEND_NAME

    def hash(self) -> str:
        return "redrafter-cpu-interpreted"

    def parse_options(self, options: dict[str, Any]) -> object:
        return options

    def add_stages(self, stages: dict[str, Any], options: object, language: _triton_compiler.Language) -> None:
        raise RuntimeError(
            "redrafter-cpu only interprets Triton kernels: this one was decorated with interpretation off"
        )

    def load_dialects(self, context: Any) -> None:
        return None

    def get_module_map(self) -> dict[str, ModuleType]:
        return {}


_real = other_cpu_backend()
if _real is not None:
    # Triton keeps one backend per name; whichever entry point comes last must lead to the real one.
    _theirs = importlib.import_module(f"{_real.value}.compiler")
    globals().update({k: v for k, v in vars(_theirs).items() if not k.startswith("__")})
    del _InterpretedBackend
