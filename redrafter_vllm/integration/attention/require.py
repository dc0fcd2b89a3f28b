# SPDX-License-Identifier: Apache-2.0
"""Checks, run when a backend is imported, that vLLM has what the backend reads and passes."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

from redrafter_vllm.integration.vllm_interface.entry import InterfaceChangedError


def require_fields(cls: type, names: str) -> None:
    """`cls`, a dataclass of vLLM, must have these fields.

    Raises:
        InterfaceChangedError: It lacks one.
    """
    _require(cls, names, [field.name for field in dataclasses.fields(cls)])


def require_parameters(function: Callable[..., Any], names: str) -> None:
    """`function` of vLLM must take these parameters.

    Raises:
        InterfaceChangedError: It lacks one.
    """
    _require(function, names, list(inspect.signature(function).parameters))


def _require(owner: Any, names: str, found: list[str]) -> None:
    if missing := [name for name in names.split() if name not in found]:
        raise InterfaceChangedError(
            f"redrafter-vllm's tree attention uses {', '.join(missing)} of {owner.__module__}.{owner.__name__}, which "
            "this vLLM does not have; install a vLLM version listed in docs/design/vllm_interface.md."
        )
