# SPDX-License-Identifier: Apache-2.0
"""Adaptive trees as on a GPU, in an engine on a CPU: vLLM's manager, which trims trees behind the host's back.

vLLM's CPU build has placeholders for streams and events, so its manager runs as it is. Durations are invented, and
those of the steps correct nothing.
"""

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor
from vllm.config.compilation import CUDAGraphMode
from vllm.v1.worker.gpu.spec_decode import adaptive_verification

from redrafter_vllm.adaptive.budget import Budget, given_budget
from redrafter_vllm.adaptive.outlook import Outlook
from redrafter_vllm.adaptive.pause import DraftingPause
from redrafter_vllm.adaptive.survival import SurvivalEstimator
from redrafter_vllm.integration.attention.metadata import TreeMetadataBuilder
from redrafter_vllm.integration.worker import gpu_adaptive_trees
from redrafter_vllm.integration.worker.gpu_adaptive_trees import GpuAdaptiveTrees
from tests.engine.generation import runner

# Milliseconds by requests and by rows: drafting pays for one request, and hardly for eight.
DRAFTING = [(1, 0.2), (8, 0.3)]
VERIFICATION = [(1, 1.0), (4, 1.05), (16, 1.2), (64, 3.0), (256, 12.0)]


@contextmanager
def as_on_a_gpu(llm: Any, adaptive: bool | None = True) -> Iterator[None]:
    """Within it the engine takes its device for one that does not wait, and vLLM's graphs for available."""
    own = runner(llm)
    with ExitStack() as stack:
        for owner, name, value in (
            (own.vllm_config.speculative_config, "adaptive", adaptive),
            (own.speculator, "drafting", None),
            (own.compilation_config, "cudagraph_mode", CUDAGraphMode.FULL_DECODE_ONLY),
            (gpu_adaptive_trees, "runs_on_host", lambda device: False),
            # Without a compiler for the CPU.
            (
                adaptive_verification,
                "_assign_draft_token_budget_compiled",
                adaptive_verification._assign_draft_token_budget,
            ),
        ):
            if name == "drafting":
                value = own.vllm_config.speculative_config.drafting
            stack.enter_context(patch.object(owner, name, value))
        yield


def make_manager(llm: Any) -> GpuAdaptiveTrees | None:
    """What vLLM's runner gets for its place when it has made attention groups."""
    own = runner(llm)
    own.attn_groups = list(own.attn_groups)
    own.adaptive_verification = None
    made: GpuAdaptiveTrees | None = own.adaptive_verification
    return made


@contextmanager
def device_trees(llm: Any) -> Iterator[GpuAdaptiveTrees]:
    """The trees of `llm` adapt as on a GPU."""
    speculator = runner(llm).speculator
    with as_on_a_gpu(llm), patch.object(gpu_adaptive_trees, "_observe", lambda *_: None):
        manager = make_manager(llm)
        assert isinstance(manager, GpuAdaptiveTrees)
        half = [(size, 0.5e-3 * milliseconds) for size, milliseconds in DRAFTING if size <= speculator.rows.padding_row]
        manager._saved_by_short_rounds = dict.fromkeys((1, speculator.drafting.round_lengths[0]), half)
        manager.set_cost_curves(DRAFTING, VERIFICATION)
        try:
            yield manager
        finally:
            forget(llm)
            assert speculator.observer is None


def forget(llm: Any) -> None:
    """Undo what a manager's making has changed, for other tests of the same engine."""
    own, speculator = runner(llm), runner(llm).speculator
    speculator.observer = speculator.survival = speculator.draft_token_confidence_probs = None
    own.adaptive_verification, speculator.is_trimmed_on_device = None, False
    for builder in (builder for groups in own.attn_groups for group in groups for builder in group.metadata_builders):
        if isinstance(builder, TreeMetadataBuilder):
            builder.has_graphs_of_any_length = False


@contextmanager
def random_confidences(seed: int) -> Iterator[None]:
    """Scripted trees get estimates that say nothing, for slots without a node as well."""
    generator = torch.Generator().manual_seed(seed)

    def store(self: Any, rows: Tensor, tree: Any, node_budget: Tensor, confidences: Tensor) -> None:
        confidences.copy_(torch.rand(confidences.shape, generator=generator))

    with patch.object(SurvivalEstimator, "store", store):
        yield


@contextmanager
def random_totals(seed: int) -> Iterator[list[int]]:
    """Any number of nodes in each step, from none to all; the device says which. Yields the numbers.

    Every round is drawn, with any number of beam steps.
    """
    rng, chosen = random.Random(seed), list[int]()

    def choose(self: GpuAdaptiveTrees, rows: np.ndarray, num_drafts: np.ndarray, *sizes: int) -> Budget:
        *_, limit = sizes
        most = min(int(num_drafts.sum()), limit)
        total = rng.choice((0, most, rng.randint(0, most), rng.randint(0, most)))
        chosen.append(total)
        survival = np.where(np.arange(self.num_speculative_steps) < num_drafts[:, None], 1.0, 0.0)
        return given_budget(survival, len(rows), np.ones(1 + most), total)

    def draws(self: Outlook, num_requests: int) -> int:
        return rng.randint(self._costs.fewest_beam_steps, self._costs.beam_length)

    with (
        patch.object(GpuAdaptiveTrees, "_choose", choose),
        patch.object(DraftingPause, "is_paused", False),
        patch.multiple(Outlook, skips=lambda *_: False, draws=draws),
    ):
        yield chosen
