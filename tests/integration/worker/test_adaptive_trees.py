# SPDX-License-Identifier: Apache-2.0
"""What adaptive trees learn from steps, without a runner."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from redrafter_vllm.adaptive.costs import MeasuredCosts
from redrafter_vllm.integration.worker import adaptive_trees


@pytest.mark.parametrize("num_nodes", [0, 3])
def test_a_step_with_drafts_and_without(num_nodes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that switches drafts off has only steps of one row."""
    costs = MeasuredCosts([(1, 0.01), (8, 0.02)], 0.0, [(1, 0.001), (2, 0.001)])
    monkeypatch.setattr(adaptive_trees, "measure_costs", lambda runner, speculator: costs)
    runner: Any = SimpleNamespace(max_num_reqs=2, max_num_tokens=8, decode_query_len=4)
    speculator: Any = SimpleNamespace(drafting=SimpleNamespace(num_speculative_tokens=3))
    trees = adaptive_trees.AdaptiveTrees(runner, speculator)
    batch: Any = SimpleNamespace(has_prefill=False, num_reqs=1, num_tokens=1 + num_nodes)
    trees.begin_step()
    trees.end_verification(batch, torch.tensor([1 + num_nodes]))
    assert trees._unlogged.steps == 1 and trees._unlogged.nodes == trees._unlogged.accepted == num_nodes
