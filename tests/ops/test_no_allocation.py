# SPDX-License-Identifier: Apache-2.0
"""A step allocates nothing around its kernels: they write to buffers allocated at the start."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from redrafter_vllm.drafting.buffers import DraftRows, RoundBuffers
from redrafter_vllm.drafting.tree import DraftTree
from redrafter_vllm.ops import dispatch
from redrafter_vllm.ops.draft_inputs import kernel as inputs_kernel
from redrafter_vllm.ops.draft_round import RoundSource
from redrafter_vllm.ops.draft_round import kernel as round_kernel
from redrafter_vllm.ops.kv_compact import kernel as compact_kernel
from redrafter_vllm.ops.kv_compact import kv_compact, prepare
from tests.ops.devices import DEVICE, runs_kernels

NODES, DEPTH, HIDDEN, REQS = 16, 4, 32, 3


class AllocationError(AssertionError):
    pass


class ForbidAllocation(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if memory(result) - memory((args, kwargs)):
            raise AllocationError(f"{func} allocates")
        return result


def memory(tree: Any) -> set[int]:
    return {leaf.untyped_storage().data_ptr() for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)}


class CountedKernel:
    """Counts launches and does nothing."""

    def __init__(self) -> None:
        self.launches = 0

    def __getitem__(self, grid: Any) -> Any:
        def launch(*args: Any, **kwargs: Any) -> None:
            self.launches += 1

        return launch


def integers(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.int64, device=DEVICE)


@runs_kernels
def test_one_launch_and_no_memory_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_ALWAYS", True)
    kernels = {name: CountedKernel() for name in ("_prepare_kernel", "_gather_kernel", "_store_kernel", "_move_kernel")}
    for module in (inputs_kernel, round_kernel, compact_kernel):
        for name, counted in kernels.items():
            if hasattr(module, name):
                monkeypatch.setattr(module, name, counted)
    rows = DraftRows(8, NODES, DEVICE)
    buffers = RoundBuffers(8, NODES, HIDDEN, torch.float32, DEVICE)
    caches = [torch.zeros(4, 2, 16, 8, device=DEVICE) for _ in range(2)]
    prepare(caches)
    num_rows = REQS * (1 + NODES)
    idx_mapping, positions, slots = integers(REQS), integers(num_rows), integers(num_rows)
    cu_num_logits, logits_indices = integers(REQS + 1).int(), integers(num_rows)
    nodes = (REQS, NODES)
    tree = DraftTree(
        integers(*nodes), integers(*nodes), integers(*nodes), integers(*nodes).float(), integers(*nodes), integers(REQS)
    )
    hidden, path, leaf = torch.zeros(num_rows, HIDDEN, device=DEVICE), integers(REQS, DEPTH), integers(REQS)
    last_sampled, num_sampled = integers(8, 1), integers(REQS).int()
    with ForbidAllocation():
        _, layout = rows.prepare(idx_mapping, cu_num_logits, logits_indices, positions)
        kv_compact(caches, path, layout.root_token, slots)
        limits = rows.beam_limit, rows.node_limit
        source = RoundSource(hidden, layout.root_token, leaf, idx_mapping, last_sampled, num_sampled, *limits)
        buffers.fill(4, source, NODES, REQS, rows.padding_row)
        own = buffers.first(REQS)
        rows.write(own.rows, tree, own.node_budget, buffers.draft_tokens[:REQS])
        with pytest.raises(AllocationError):
            torch.add(leaf, 1)
    assert {name: counted.launches for name, counted in kernels.items()} == dict.fromkeys(kernels, 1)
