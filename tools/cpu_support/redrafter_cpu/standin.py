# SPDX-License-Identifier: Apache-2.0
"""An object that takes the place of an interpreted Triton kernel.

Every launcher in vLLM looks its kernel up in its own module when it is called, so replacing the kernel there serves
every importer of the launcher.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any


class StandIn:
    """Launched like the kernel it replaces, `standin[grid](*arguments)`; computes the whole grid at once.

    `function(grid, **arguments)` takes the kernel's own arguments by the kernel's own names, tensors where the kernel
    has pointers. It may return `NotImplemented` before it has written anything: the interpreted kernel then runs. Its
    keyword-only parameters are its own, set with `functools.partial`.
    """

    def __init__(self, kernel: Any, function: Callable[..., Any]) -> None:
        """Raises `TypeError` if the names of the function's parameters are not those of the kernel."""
        wanted = kernel_parameters(kernel)
        parameters = inspect.signature(function).parameters.values()
        found = [entry.name for entry in parameters if entry.kind is not inspect.Parameter.KEYWORD_ONLY][1:]
        if found != wanted:
            raise TypeError(f"its parameters are {wanted}, expected {found}")
        self.kernel = kernel
        self.function = function
        self._names = wanted
        self._defaults = {
            name: entry.default
            for name, entry in inspect.signature(kernel.fn).parameters.items()
            if entry.default is not inspect.Parameter.empty
        }

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*args: Any, **kwargs: Any) -> None:
            if len(args) > len(self._names):
                raise TypeError(f"{len(args)} arguments for a kernel of {len(self._names)}")
            # `Signature.bind` takes 20 us, and a step has ten launches.
            arguments = {**self._defaults, **dict(zip(self._names, args, strict=False))}
            arguments.update((name, value) for name, value in kwargs.items() if name in self._names)
            if self.function(grid, **arguments) is NotImplemented:
                self.kernel[grid](*args, **kwargs)

        return launch

    def __getattr__(self, name: str) -> Any:
        return getattr(self.kernel, name)


def kernel_parameters(kernel: Any) -> list[str]:
    """The names of a kernel's parameters, in order. Raises `TypeError` if it is not a Triton kernel."""
    function = getattr(kernel, "fn", None)
    if function is None:
        raise TypeError("it is not a Triton kernel")
    return list(inspect.signature(function).parameters)
