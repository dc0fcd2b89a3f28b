# SPDX-License-Identifier: Apache-2.0
"""Fails on operations that would make the host wait for the device: by CUDA itself, and on a CPU by a dispatch mode."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Reading a value, and shapes that depend on values. A GPU would have to finish its queue for each of them.
SYNCHRONISING = {
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
# These read a CPU tensor's memory without a dispatch.
_READING = ("tolist", "numpy", "cpu")


class HostSyncError(AssertionError):
    """An operation inside `forbid_host_sync` waits for the device or has a shape that depends on values."""


class _ForbidHostSync(TorchDispatchMode):
    """Treats all tensors as the device's, except those in `host`, those made from numpy arrays, and their results."""

    def __init__(self, host: Iterable[torch.Tensor]) -> None:
        super().__init__()
        # The tensors are kept, or another one might reuse their memory.
        self.host = {_memory(tensor): tensor for tensor in host}

    def is_host(self, tensor: torch.Tensor) -> bool:
        return _memory(tensor) in self.host

    def add_host(self, tree: Any) -> Any:
        self.host |= {_memory(tensor): tensor for tensor in _tensors(tree)}
        return tree

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = _tensors((args, kwargs))
        if given and all(self.is_host(tensor) for tensor in given):
            return self.add_host(func(*args, **(kwargs or {})))
        name = func.overloadpacket.__name__
        if name in SYNCHRONISING and not _has_output_size(name, kwargs):
            raise HostSyncError(f"{func} waits for the device")
        if name in _INDEXING and any(_is_mask(index) for index in args[1]):
            raise HostSyncError(f"{func} with a boolean mask has a shape that depends on values")
        return func(*args, **(kwargs or {}))


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _has_output_size(name: str, kwargs: dict[str, Any] | None) -> bool:
    return name == "repeat_interleave" and (kwargs or {}).get("output_size") is not None


def _is_mask(index: Any) -> bool:
    return isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8)


def _refuse(mode: _ForbidHostSync, name: str) -> Callable[..., Any]:
    original = getattr(torch.Tensor, name)

    def read(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if mode.is_host(tensor):
            return original(tensor, *args, **kwargs)
        raise HostSyncError(f"Tensor.{name} waits for the device")

    return read


@contextmanager
def forbid_host_sync(host: Iterable[torch.Tensor] = ()) -> Iterator[None]:
    """Raises HostSyncError within it on `.item()`, `nonzero`, boolean-mask indexing, branches on tensors.

    `host`: tensors that are on the host on a GPU machine too. On a GPU, CUDA's own debug mode raises RuntimeError.
    """
    if torch.cuda.is_available():
        with _sync_debug_mode("error"):
            yield
        return
    mode, from_numpy = _ForbidHostSync(host), torch.from_numpy
    with ExitStack() as stack:
        for name in _READING:
            stack.enter_context(patch.object(torch.Tensor, name, _refuse(mode, name)))
        stack.enter_context(patch.object(torch, "from_numpy", lambda array: mode.add_host(from_numpy(array))))
        stack.enter_context(mode)
        yield


@contextmanager
def allow_host_sync() -> Iterator[None]:
    """Lifts `forbid_host_sync`, for vLLM's code and for what a CPU runs instead of a kernel."""
    if torch.cuda.is_available():
        with _sync_debug_mode("default"):
            yield
        return
    with ExitStack() as stack:
        for name in _READING:
            stack.enter_context(patch.object(torch.Tensor, name, _ORIGINALS[name]))
        stack.enter_context(torch.utils._python_dispatch._disable_current_modes())
        yield


_ORIGINALS = {name: getattr(torch.Tensor, name) for name in _READING}


@contextmanager
def _sync_debug_mode(mode: str) -> Iterator[None]:
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode(mode)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
