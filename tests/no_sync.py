# SPDX-License-Identifier: Apache-2.0
"""Fails on operations that would make the host wait for the device, on any machine."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# Reading a value, and shapes that depend on values. A GPU would have to finish its queue for each of them.
_SYNCHRONISING = {
    "_local_scalar_dense",
    "equal",
    "is_nonzero",
    "item",
    "masked_select",
    "nonzero",
    "nonzero_numpy",
    "argwhere",
    "_unique",
    "_unique2",
    "unique_consecutive",
    "unique_dim",
    "unique_dim_consecutive",
    "bincount",
    "repeat_interleave",
}
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}


class HostSyncError(AssertionError):
    """An operation inside `forbid_host_sync` waits for the device or has a shape that depends on values."""


class _ForbidHostSync(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in _SYNCHRONISING and not _has_output_size(name, kwargs):
            raise HostSyncError(f"{func} waits for the device")
        if name in _INDEXING and any(_is_mask(index) for index in args[1]):
            raise HostSyncError(f"{func} with a boolean mask has a shape that depends on values")
        result = func(*args, **(kwargs or {}))
        if name in ("_to_copy", "copy_") and _crosses_to_host(args, result):
            raise HostSyncError(f"{func} copies to the host")
        return result


def _has_output_size(name: str, kwargs: dict[str, Any] | None) -> bool:
    return name == "repeat_interleave" and (kwargs or {}).get("output_size") is not None


def _is_mask(index: Any) -> bool:
    return isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8)


def _crosses_to_host(args: Any, result: torch.Tensor) -> bool:
    source = args[1] if len(args) > 1 and isinstance(args[1], torch.Tensor) else args[0]
    return source.device.type != "cpu" and result.device.type == "cpu"


def _refuse(name: str) -> Callable[..., Any]:
    def refused(*_: Any, **__: Any) -> Any:
        raise HostSyncError(f"Tensor.{name} waits for the device")

    return refused


@contextmanager
def forbid_host_sync() -> Iterator[None]:
    """Raises HostSyncError within it on `.item()`, `nonzero`, boolean-mask indexing, branches on tensors."""
    with ExitStack() as stack:
        # These read a CPU tensor's memory without a dispatch.
        for name in ("tolist", "numpy", "cpu"):
            stack.enter_context(patch.object(torch.Tensor, name, _refuse(name)))
        stack.enter_context(_ForbidHostSync())
        yield
