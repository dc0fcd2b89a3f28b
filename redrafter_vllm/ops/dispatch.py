# SPDX-License-Identifier: Apache-2.0
"""The choice between an op's Triton kernel and its plain-torch reference, in one place for all ops.

`REDRAFTER_KERNELS=1` is for debugging: it uses the kernels on CPUs too, where Triton has to interpret them, as the CPU
set-up provides. This is slow. The variable is read once, when this module is imported.
"""

import os
from collections.abc import Callable, Iterable
from functools import wraps
from importlib import import_module
from types import ModuleType
from typing import ParamSpec, TypeVar

from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")

_ALWAYS = os.environ.get("REDRAFTER_KERNELS") == "1"


def dispatch(reference: Callable[P, R]) -> Callable[P, R]:
    """The op of a function in a `reference.py`: the `kernel.py` beside it has one of the same name and signature.

    The kernel runs where its tensors are on a CUDA device, unless that module has a function `supports` of the same
    arguments that refuses them. Triton is imported then, not before.
    """
    package, name = reference.__module__.rpartition(".")[0], reference.__name__
    kernel: ModuleType | None = None

    @wraps(reference)
    def op(*args: P.args, **kwargs: P.kwargs) -> R:
        nonlocal kernel
        if use_kernel((*args, *kwargs.values())):
            kernel = kernel or import_module(f"{package}.kernel")
            supports = getattr(kernel, "supports", None)
            if supports is None or supports(*args, **kwargs):
                result: R = getattr(kernel, name)(*args, **kwargs)
                return result
        return reference(*args, **kwargs)

    return op


def use_kernel(args: Iterable[object]) -> bool:
    """Whether to launch a kernel on `args`: on CUDA devices, and everywhere with `REDRAFTER_KERNELS=1`."""
    return _ALWAYS or _on_cuda(args)


def _on_cuda(args: Iterable[object]) -> bool:
    for value in args:
        if isinstance(value, Tensor):
            return value.is_cuda
        if isinstance(value, (tuple, list)) and value:
            return _on_cuda(value)
    return False
