# SPDX-License-Identifier: Apache-2.0
"""The choice between an op's kernels and its plain-torch reference, in one place for all ops.

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
    """The op of a function in a `reference.py`: the modules beside it have one of the same name and signature.

    `kernel.py`, in Triton, runs where the tensors are on a CUDA device, `native.py`, in C++, where they are on the CPU,
    and the reference where there is no such module, or it has a function `supports` of the same arguments that refuses
    them. A module is imported when it is first needed.
    """
    package, name = reference.__module__.rpartition(".")[0], reference.__name__
    modules: dict[str, ModuleType | None] = {}

    @wraps(reference)
    def op(*args: P.args, **kwargs: P.kwargs) -> R:
        kind = "kernel" if use_kernel((*args, *kwargs.values())) else "native"
        if kind not in modules:
            modules[kind] = _module(f"{package}.{kind}")
        module = modules[kind]
        supports = getattr(module, "supports", None)
        if module is None or (supports is not None and not supports(*args, **kwargs)):
            return reference(*args, **kwargs)
        result: R = getattr(module, name)(*args, **kwargs)
        return result

    return op


def _module(path: str) -> ModuleType | None:
    """A module, or None where there is none of this name; what it fails to import itself is still an error."""
    try:
        return import_module(path)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{path}.".startswith(f"{error.name}."):
            raise
        return None


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
