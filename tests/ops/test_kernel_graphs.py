# SPDX-License-Identifier: Apache-2.0
"""On a GPU: the kernels neither wait for the device nor allocate outside a graph's pool, so a graph can hold them."""

from collections.abc import Callable

import pytest
import torch

from redrafter_vllm.checkpoint.config import DrafterConfig
from redrafter_vllm.config import DraftingConfig
from redrafter_vllm.drafting.buffers import DraftRows, RoundBuffers
from redrafter_vllm.drafting.propose import propose_trees
from redrafter_vllm.model.drafter import Drafter
from redrafter_vllm.ops.draft_round import RoundSource
from redrafter_vllm.ops.kv_compact import kv_compact, prepare
from redrafter_vllm.ops.prefix_tree import ancestor_mask, prefix_tree
from redrafter_vllm.ops.tree_verify import tree_verify
from tests.ops.devices import DEVICE, HAS_GPU

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not HAS_GPU, reason="needs a GPU")]


def step(
    cache: torch.Tensor, beams: torch.Tensor, above: torch.Tensor, scores: torch.Tensor, sampled: torch.Tensor
) -> torch.Tensor:
    """Makes trees, walks them along `sampled`, and compacts; returns the numbers of emitted tokens."""
    tokens, parents, _, _, _, num_nodes = prefix_tree(beams, above, scores, sampled.shape[1] - 1)
    valid = ancestor_mask(parents, num_nodes).diagonal(dim1=1, dim2=2).contiguous()
    first_row = torch.arange(beams.shape[0], device=DEVICE) * sampled.shape[1]
    walk = tree_verify(sampled.flatten(), first_row, tokens, parents, valid, beams.shape[1])
    slots = torch.arange(cache.shape[0] * cache.shape[2], device=DEVICE)
    kv_compact([cache], walk.path, torch.arange(beams.shape[0], device=DEVICE) * 32, slots)
    return walk.num_emitted


def arguments() -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    beams = torch.randint(3, (2, 4, 4), device=DEVICE)
    cache = torch.randn(4, 2, 16, 64, device=DEVICE)
    above = torch.randint(4, (2, 4, 4), device=DEVICE)
    return cache, beams, above, -torch.rand(2, 4, 4, device=DEVICE), torch.randint(3, (2, 17), device=DEVICE)


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
    # The first call for a cache copies its address, which must not happen during capture.
    prepare([inputs[0]])
    prepare([wanted_inputs[0]])
    wanted = without_waiting(lambda: step(*wanted_inputs))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        emitted = step(*inputs)
    graph.replay()
    assert torch.equal(emitted, wanted)
    assert torch.equal(inputs[0], wanted_inputs[0])


SIZE, HIDDEN, VOCAB = 4, 64, 5000
CONFIG = DraftingConfig(beam_width=4, beam_length=4)


class Round:
    """A drafting round of `SIZE` requests on its own buffers, as the speculator runs it."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.drafter = Drafter(DrafterConfig(VOCAB, HIDDEN, exit_dim=2 * HIDDEN, num_draft_layers=1)).to(DEVICE)
        for parameter in self.drafter.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        self.embedding = torch.randn(VOCAB, HIDDEN, device=DEVICE)
        self.rows = DraftRows(8, CONFIG.num_speculative_tokens, DEVICE)
        self.rows.beam_limit.fill_(CONFIG.beam_width)
        self.buffers = RoundBuffers(8, CONFIG.num_speculative_tokens, HIDDEN, torch.float32, DEVICE)

    def fill(self, num_reqs: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        source = RoundSource(
            hidden=torch.randn(20, HIDDEN, generator=generator).to(DEVICE),
            root_token=torch.arange(num_reqs, device=DEVICE) * 5,
            leaf=None,
            idx_mapping=torch.randperm(8, generator=generator)[:num_reqs].to(DEVICE),
            last_sampled=torch.randint(VOCAB, (8, 1), generator=generator).to(DEVICE),
            num_sampled=torch.ones(num_reqs, dtype=torch.int32, device=DEVICE),
            beam_limit=self.rows.beam_limit,
            node_limit=self.rows.node_limit,
        )
        self.buffers.fill(SIZE, source, 16, num_reqs, self.rows.padding_row)

    @torch.inference_mode()
    def run(self) -> None:
        own = self.buffers.first(SIZE)
        tree = propose_trees(self.drafter, self.embedding, own.context, own.roots, own.beam_limit, CONFIG)
        self.rows.write(own.rows, tree, own.node_budget, self.buffers.draft_tokens[:SIZE])


def test_a_round_replays_as_it_ran() -> None:
    """Other requests, and fewer of them, in each replay; nothing is allocated or waited for."""
    plain, recorded = Round(), Round()
    recorded.fill(SIZE, seed=0)
    recorded.run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        recorded.run()
    for seed, num_reqs in enumerate((SIZE, 1, 3)):
        plain.fill(num_reqs, seed)
        recorded.fill(num_reqs, seed)
        allocated = torch.cuda.memory_stats()["allocation.all.allocated"]
        without_waiting(lambda: graph.replay() or recorded.buffers.draft_tokens)
        assert torch.cuda.memory_stats()["allocation.all.allocated"] == allocated
        plain.run()
        assert torch.equal(recorded.buffers.draft_tokens[:num_reqs], plain.buffers.draft_tokens[:num_reqs])
        rows = recorded.buffers.inputs.rows[:num_reqs]
        for mine, theirs in zip(recorded.rows.trees, plain.rows.trees, strict=True):
            assert torch.equal(mine[rows], theirs[rows])
