# SPDX-License-Identifier: Apache-2.0
"""Replacing a name of vLLM by a function of ours, once per process, after checking that it is what it was."""

import functools
import importlib
import inspect
from collections.abc import Callable
from typing import Any

from redrafter_vllm.integration.vllm_interface.entry import InterfaceChangedError
from redrafter_vllm.integration.vllm_interface.names import rebound

_MARK = "_redrafter_original"


def rebind(owner: Any, name: str, make: Callable[[Any], Any], parameters: str | None = None) -> None:
    """Replace `owner.name` by `make(original)`, once per process.

    `parameters` are the names that the original must take, separated by spaces; None skips the check.

    Raises:
        InterfaceChangedError: The name is gone or takes other parameters.
    """
    place = f"{getattr(owner, '__name__', owner)}.{name}"
    original = vars(owner).get(name)
    if original is None:
        raise interface_changed(place, "does not have")
    function = original.__func__ if isinstance(original, (classmethod, staticmethod)) else original
    if hasattr(function, _MARK):
        return
    names = list(inspect.signature(function).parameters)
    if parameters is not None and names != parameters.split():
        raise interface_changed(place, f"has with other parameters than ({', '.join(parameters.split())})")
    replacement = functools.wraps(function)(make(function))
    setattr(replacement, _MARK, function)
    setattr(owner, name, type(original)(replacement) if function is not original else replacement)


def rebind_listed(target: str, make: Callable[[Any], Any]) -> None:
    """Rebind an entry of `VLLM_NAMES`, which has the parameters that the original must take.

    Raises:
        InterfaceChangedError: Its module or name is gone, or it takes other parameters.
    """
    entry = rebound(target)
    *owners, name = entry.path.split(".")
    try:
        owner = importlib.import_module(entry.module)
        for part in owners:
            owner = getattr(owner, part)
    except (ImportError, AttributeError) as error:
        raise interface_changed(target, "does not have") from error
    rebind(owner, name, make, entry.parameters)


def interface_changed(place: str, how: str) -> InterfaceChangedError:
    """The error for a name that cannot be rebound; `how` completes "which this vLLM …"."""
    return InterfaceChangedError(
        f"redrafter-vllm rebinds {place}, which this vLLM {how}; install a vLLM version listed in "
        "docs/design/vllm_interface.md."
    )
