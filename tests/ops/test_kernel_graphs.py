# SPDX-License-Identifier: Apache-2.0
"""On a GPU: the kernels neither wait for the device nor allocate outside a graph's pool, so a graph can hold them."""

from collections.abc import Callable

import pytest
import torch

from redrafter_vllm.ops.kv_compact import kv_compact, prepare
from redrafter_vllm.ops.prefix_tree import ancestor_mask, prefix_tree
from redrafter_vllm.ops.tree_verify import tree_verify
from tests.ops.devices import DEVICE, HAS_GPU

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not HAS_GPU, reason="needs a GPU")]


def step(cache: torch.Tensor, beams: torch.Tensor, log_probs: torch.Tensor, sampled: torch.Tensor) -> torch.Tensor:
    """Draw trees, walk them along `sampled`, and compact; gives the numbers of emitted tokens."""
    tokens, parents, _, _, num_nodes = prefix_tree(beams, log_probs, sampled.shape[1] - 1)
    valid = ancestor_mask(parents, num_nodes).diagonal(dim1=1, dim2=2).contiguous()
    first_row = torch.arange(beams.shape[0], device=DEVICE) * sampled.shape[1]
    walk = tree_verify(sampled.flatten(), first_row, tokens, parents, valid, beams.shape[2])
    slots = torch.arange(cache.shape[0] * cache.shape[2], device=DEVICE)
    kv_compact([cache], walk.path, torch.arange(beams.shape[0], device=DEVICE) * 32, slots)
    return walk.num_emitted


def arguments() -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    beams = torch.randint(3, (2, 4, 4), device=DEVICE)
    cache = torch.randn(4, 2, 16, 64, device=DEVICE)
    return cache, beams, -torch.rand(2, 4, 4, device=DEVICE), torch.randint(3, (2, 17), device=DEVICE)


def without_waiting(call: Callable[[], torch.Tensor]) -> torch.Tensor:
    torch.cuda.set_sync_debug_mode("error")
    try:
        return call()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_replays_as_it_ran() -> None:
    inputs = arguments()
    step(*arguments())
    wanted_inputs = [x.clone() for x in inputs]
    # The first call for a cache copies its address; the graph below is of a cache that is known.
    prepare([inputs[0]])
    prepare([wanted_inputs[0]])
    wanted = without_waiting(lambda: step(*wanted_inputs))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        emitted = step(*inputs)
    graph.replay()
    assert torch.equal(emitted, wanted)
    assert torch.equal(inputs[0], wanted_inputs[0])
