# SPDX-License-Identifier: Apache-2.0
"""Simulates a CUDA graph on any machine: repeats recorded operations on the memory of the recording."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from importlib import import_module
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Tape:
    """Replaces `torch.cuda.CUDAGraph`. Values that the host read while recording are constant in replays.

    A replay first overwrites the memory that the recording allocated, as other graphs of its pool may have.
    """

    def __init__(self) -> None:
        self.operations: list[tuple[Any, Any, Any, Any]] = []
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1
        for _, args, kwargs, result in self.operations:
            for own in _allocated(result, args, kwargs):
                own.fill_(float("nan") if own.is_floating_point() else True if own.dtype == torch.bool else -(2**30))
        for function, args, kwargs, result in self.operations:
            again = function(*args, **kwargs)
            for own, fresh in zip(_tensors(result), _tensors(again), strict=True):
                if _memory(own) != _memory(fresh):
                    own.copy_(fresh)


class _Recorder(TorchDispatchMode):
    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self.tape = tape

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.tape.operations.append((func, args, kwargs or {}, result))
        return result


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _allocated(result: Any, args: Any, kwargs: Any) -> list[torch.Tensor]:
    given = {_memory(tensor) for tensor in _tensors((args, kwargs))}
    return [tensor for tensor in _tensors(result) if tensor.numel() and _memory(tensor) not in given]


@contextmanager
def _recording(tape: Tape, *_: Any, **__: Any) -> Iterator[None]:
    with _Recorder(tape):
        yield


@contextmanager
def tapes_for_graphs() -> Iterator[None]:
    """Lets vLLM's graph managers record tapes, without a GPU."""
    from vllm.platforms import current_platform
    from vllm.v1.worker.gpu import cudagraph_utils

    from redrafter_vllm.ops import beam_step, graft_copies, prefix_tree, survival

    replaced = [
        # A tape records torch's operations: a kernel in C++ would write memory that no replay writes again.
        *(
            (import_module(f"{op.__name__}.native"), "supports", lambda *_, **__: False)
            for op in (beam_step, graft_copies, prefix_tree, survival)
        ),
        (cudagraph_utils, "graph_capture", lambda **_: nullcontext()),
        (cudagraph_utils, "capture_pool", lambda pool, _: nullcontext(pool)),
        (cudagraph_utils.CudaGraphManager, "_capture_stream", lambda *_: None),
        (type(current_platform), "get_global_graph_pool", lambda _: (0, 0)),
        (torch.cuda, "CUDAGraph", Tape),
        (torch.cuda, "graph", _recording),
    ]
    with ExitStack() as stack:
        for owner, name, stand_in in replaced:
            stack.enter_context(patch.object(owner, name, stand_in))
        yield
