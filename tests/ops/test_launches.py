# SPDX-License-Identifier: Apache-2.0
"""Counts the launches of a drafting round, each of which costs a GPU about two microseconds in a graph."""

from collections import Counter
from functools import partial
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from redrafter_vllm.adaptive.survival import SurvivalEstimator
from redrafter_vllm.checkpoint.config import DrafterConfig
from redrafter_vllm.config import DraftingConfig
from redrafter_vllm.drafting.buffers import BatchDrafts, DraftRows, RoundBuffers
from redrafter_vllm.drafting.propose import propose_trees
from redrafter_vllm.model.drafter import Drafter
from redrafter_vllm.model.packed import PackedDrafter
from redrafter_vllm.ops import dispatch
from redrafter_vllm.ops.graft_copies import Texts
from redrafter_vllm.ops.tree_verify import Walk
from tests.tools.cpu_support.interpreted import needs_interpreter

pytestmark = needs_interpreter

STEPS = 3
# Operations without a launch: views and allocations. `to` the same type does nothing.
LOOKS = {"alias", "detach", "expand", "reshape", "select", "slice", "to", "unsqueeze", "view"}
FREE = LOOKS | {"empty", "empty_like", "new_empty"}


class Launches(TorchDispatchMode):
    """Counts torch's operations, but not those that interpret a kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()
        self.in_kernel = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if not self.in_kernel and name not in FREE:
            self.count[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Launches:
    from triton.runtime.interpreter import GridExecutor

    counted, run = Launches(), GridExecutor.__call__

    def count(self: Any, *args: Any, **kwargs: Any) -> None:
        counted.count[self.fn.__name__] += 1
        counted.in_kernel = True
        try:
            run(self, *args, **kwargs)
        finally:
            counted.in_kernel = False

    monkeypatch.setattr(GridExecutor, "__call__", count)
    monkeypatch.setattr(dispatch, "_ALWAYS", True)
    return counted


@torch.inference_mode()
@pytest.mark.parametrize("project", [False, True], ids=["embedding", "table"])
def test_of_a_round(project: bool, launches: Launches) -> None:
    """A round as serving records it, with two ResBlocks and a draft vocabulary."""
    drafter = PackedDrafter(Drafter(DrafterConfig(50, 16, 32, 2, draft_vocab_size=30)), project_embedding=project)
    inputs, drafting = drafter.token_inputs(torch.randn(50, 16)), DraftingConfig(beam_width=2, beam_length=STEPS)
    rows = DraftRows(1, drafting.num_speculative_tokens, torch.device("cpu"))
    buffers = RoundBuffers(1, drafting.num_speculative_tokens, 16, torch.float32, torch.device("cpu"))
    with launches:
        tree = propose_trees(drafter, inputs, *buffers.inputs[:2], buffers.inputs.beam_limit, drafting)
        rows.write(buffers.inputs.rows, tree, buffers.inputs.node_budget, buffers.draft_tokens)
    # Per step: recurrence, state's half of the first layer, second block, output; per round: the context's half.
    products = {"linear": 4 * STEPS + 1}
    recurrence = {"_add_kernel": STEPS} if project else {"_join_kernel": STEPS, "silu": STEPS}
    head = {"_residual_kernel": 2 * STEPS}
    search = dict.fromkeys(("_tile_kernel", "_beam_kernel", "_request_kernel", "_grow_kernel"), STEPS)
    once = {"cat": 1, "zeros_like": 1, "_build_kernel": 1, "_store_kernel": 1}
    assert dict(launches.count) == products | recurrence | head | search | once
    # Copies of the text are one more.
    texts = Texts(torch.zeros(1, 8, dtype=torch.int32), torch.tensor([5], dtype=torch.int32)), buffers.inputs.rows
    launches.count.clear()
    with launches:
        propose_trees(drafter, inputs, *buffers.inputs[:2], buffers.inputs.beam_limit, drafting, texts=texts)
    assert dict(launches.count) == products | recurrence | head | search | {
        **dict.fromkeys(("cat", "zeros_like", "_build_kernel", "_graft_kernel"), 1)
    }
    # Where trees adapt, a round has two more, and a verification one.
    launches.count.clear()
    survival, confidences = SurvivalEstimator(1, 6, STEPS, torch.device("cpu")), torch.zeros(1, 6)
    launches.count.clear()
    with launches:
        rank = partial(survival.rank, rows=buffers.inputs.rows)
        tree = propose_trees(drafter, inputs, *buffers.inputs[:2], buffers.inputs.beam_limit, drafting, rank)
        survival.store(buffers.inputs.rows, tree, buffers.inputs.node_budget, confidences)
        rows.write(buffers.inputs.rows, tree, buffers.inputs.node_budget, buffers.draft_tokens)
    ours = {"_rank_kernel": 1, "_keep_kernel": 1}
    assert dict(launches.count) == products | recurrence | head | search | once | ours
    launches.count.clear()
    nodes, empty = torch.zeros(1, 6, dtype=torch.int64), torch.zeros(0)
    drafts = BatchDrafts(nodes, nodes - 1, nodes + 1, empty, nodes == 0)
    walk = Walk(empty, torch.full((1, STEPS), -1), empty, empty)
    with launches:
        survival.grade(buffers.inputs.rows, drafts, walk)
    assert dict(launches.count) == {"_grade_kernel": 1}
