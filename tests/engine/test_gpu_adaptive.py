# SPDX-License-Identifier: Apache-2.0
"""Trees that adapt on a GPU: the device decides which nodes are verified, and the host has upper bounds.

Simulated on a CPU: vLLM's manager and runner are its own, graphs are functions that run again, kernels are interpreted.
"""

import logging
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from vllm.config.compilation import CUDAGraphMode
from vllm.v1.worker.gpu.spec_decode import adaptive_verification

from redrafter_vllm.adaptive.record import AdaptiveCounts
from redrafter_vllm.integration.attention.triton import TritonTreeImpl
from redrafter_vllm.integration.worker import adaptive_report, gpu_adaptive_trees
from redrafter_vllm.ops.tree_attention.reference import TreeBatch, tree_attention
from tests.engine.conftest import MakeEngine
from tests.engine.device_trees import as_on_a_gpu, device_trees, forget, make_manager, random_confidences, random_totals
from tests.engine.generation import CHAIN, TREE, cpu_only, generate, params, random_prompts, runner, tokens, worker
from tests.engine.scripted import run_both
from tests.engine.simulated_graphs import simulated_graphs
from tests.engine.test_adaptive import assert_same, requests
from tests.engine.test_draft_graphs import poisoned_inputs, recorded
from tests.engine.test_kernel_attention import SHAPE, tree_engine
from tests.engine.test_kernel_attention import requests as few_requests
from tests.engine.test_warm_up import a_gpu_that_starts

pytestmark = cpu_only


@pytest.fixture
def by_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention from its definition, which reads lengths where a kernel would; interpreted kernels take minutes."""

    def forward(
        self: Any,
        layer: Any,
        query: Any,
        key: Any,
        value: Any,
        kv_cache: Any,
        attn_metadata: Any,
        output: Any,
        **_: Any,
    ) -> Any:
        if attn_metadata is None:
            return output.fill_(0)
        count, causal = attn_metadata.num_tree_tokens, attn_metadata.causal
        if attn_metadata.trees is not None:
            tree_attention(query[:count], kv_cache, attn_metadata.trees, self.scale, out=output[:count])
        if causal is not None:
            none = torch.zeros(len(causal.seq_lens), 1, 1, dtype=torch.bool)
            batch = TreeBatch(
                causal.block_table,
                causal.query_start_loc,
                causal.seq_lens,
                none,
                none[:, 0, 0].int(),
                causal.max_query_len,
            )
            tree_attention(query[count:], kv_cache, batch, self.scale, out=output[count:])
        return output

    monkeypatch.setattr(TritonTreeImpl, "forward", forward)


@pytest.mark.parametrize("backend", ["triton"], indirect=True)
@pytest.mark.parametrize("asynchronous", [False, True])
def test_any_budget_gives_the_tokens_of_plain_vllm(
    make_engine: MakeEngine, asset: Path, backend: type[Any], by_definition: None, asynchronous: bool
) -> None:
    """Every kind of request, logprobs among them, beside prompts; rounds replayed from recordings."""
    prompts = random_prompts(len(requests()), 2048, seed=7, longest=60)
    wanted = generate(make_engine(asset), prompts, requests())
    llm = make_engine(asset, TREE, async_scheduling=asynchronous, block_size=16)
    assert runner(llm).attn_groups[0][0].backend is backend
    with (
        device_trees(llm),
        random_totals(seed=asynchronous) as chosen,
        recorded(llm, sizes=[1, 2, 4, 6, 8]) as speculator,
        poisoned_inputs(speculator),
    ):
        outputs = generate(llm, prompts, requests())
        shorter = speculator.graphs.shorter.items()
        replays = {steps: sum(tape.replays for tape in graphs.graphs.values()) for steps, graphs in shorter}
    assert_same(outputs, wanted)
    assert 0 in chosen and len(set(chosen)) > 10
    assert list(replays) == list(speculator.drafting.round_lengths[:-1])
    assert all(count > 3 for count in replays.values()), replays


def test_full_graphs_of_any_lengths(make_engine: MakeEngine, random_target: Path, backend: type[Any]) -> None:
    """Random trees and budgets; graphs with padding in requests and in tokens, and steps without any draft."""
    plain, llm = make_engine(random_target, **SHAPE), tree_engine(make_engine, random_target, backend)
    prompts, sampling = few_requests(30, 4, 9)
    for index, each in enumerate(sampling):
        each.max_tokens += 6 * index
    with (
        device_trees(llm),
        random_totals(seed=2) as chosen,
        random_confidences(seed=3),
        simulated_graphs(llm, [2, 3, 8, 24, 48], any_lengths=True) as replays,
    ):
        expected, outputs = run_both(plain, llm, prompts, sampling)
    assert tokens(outputs) == tokens(expected)
    assert 0 in chosen and len(set(chosen)) > 5
    assert len({size for _, size in replays}) >= 4 and any(requests < size for requests, size in replays)


@pytest.mark.parametrize("backend", ["triton"], indirect=True)
def test_chosen_budgets_give_the_tokens_of_plain_vllm(
    make_engine: MakeEngine, asset: Path, backend: type[Any], by_definition: None
) -> None:
    """With the invented durations more drafts of a request pay where few requests run."""
    prompts = random_prompts(len(requests()), 2048, seed=8, longest=60)
    wanted = generate(make_engine(asset), prompts, requests())
    llm = make_engine(asset, TREE, block_size=16)
    rows: dict[int, list[int]] = {1: [], 8: []}  # of a step, by requests
    count = gpu_adaptive_trees.GpuAdaptiveTrees.end_verification

    def watch(self: Any, batch: Any, num_sampled: torch.Tensor) -> None:
        if not batch.has_prefill and batch.num_reqs in rows:
            rows[batch.num_reqs].append(batch.num_tokens)
        count(self, batch, num_sampled)

    taken: list[AdaptiveCounts] = []  # by the export of every step
    take = gpu_adaptive_trees.GpuAdaptiveTrees.take_counts

    def keep(self: Any) -> AdaptiveCounts:
        taken.append(take(self))
        return taken[-1]

    with (
        device_trees(llm),
        patch.object(gpu_adaptive_trees.GpuAdaptiveTrees, "end_verification", watch),
        patch.object(gpu_adaptive_trees.GpuAdaptiveTrees, "take_counts", keep),
    ):
        assert_same(generate(llm, prompts, requests()), wanted)
        for each in rows.values():
            each.clear()
        few = params(temperature=0.0, max_tokens=24, ignore_eos=True)
        together = generate(llm, prompts[:8], few)
        alone = generate(llm, prompts[:8], few, one_by_one=True)
        assert tokens(together) == tokens(alone)
        assert runner(llm).speculator.survival.estimates.sums.abs().sum() > 0
        assert sum(counts.expected_thousandths for counts in taken) > 0
    assert max(rows[1]) > 4 and np.mean(rows[1]) > np.mean(rows[8]) / 8 + 1


class HostEvent:
    """In the place of a CUDA event."""

    def __init__(self, **_: bool) -> None:
        self.at = 0.0

    def record(self, *_: Any) -> None:
        self.at = time.perf_counter()

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, later: "HostEvent") -> float:
        return 1e3 * (later.at - self.at)


@pytest.mark.parametrize("backend", ["flash"], indirect=True)
def test_the_whole_start_of_a_gpu_worker(make_engine: MakeEngine, random_target: Path, backend: type[Any]) -> None:
    """As `test_warm_up`: graphs for any lengths are captured, and steps of every size are timed by replays.

    Trees have copies of the text, so that a round may have no beam steps.
    """
    from vllm.v1.worker.gpu_worker import Worker

    plain = make_engine(random_target, **SHAPE)
    llm = make_engine(random_target, {**TREE, "prompt_lookup": True}, block_size=32, **SHAPE, seed=2)
    own = runner(llm)
    kv_cache_config = own.kv_cache_config
    with (
        as_on_a_gpu(llm, adaptive=None),
        a_gpu_that_starts(llm, [1, 2]),
        patch.object(torch.cuda, "Event", HostEvent),
        patch.object(adaptive_verification, "_PROFILE_REPLAYS", 1),
        patch.object(gpu_adaptive_trees, "SHARED_INTERVAL", 2),
    ):
        own.profile_run()
        assert own.profile_cudagraph_memory() > 0
        worker(llm).initialize_from_config(kv_cache_config)
        Worker.compile_or_warm_up_model(worker(llm))
        manager, graphs = own.adaptive_verification, own.cudagraph_manager.graphs
        assert manager is own.speculator.observer and own.speculator.graphs.graphs
        assert {graph.num_tokens for graph in graphs} == {1, 2, 17, 34}
        assert {(graph.max_query_len, graph.uniform_token_count) for graph in graphs} == {(17, None)}
        drafting, verification = manager.cost_tables
        assert (drafting[1:] > 0).all() and (np.diff(verification) >= 0).all()
        # Short rounds are timed by replays of their own graphs.
        lengths = own.speculator.drafting.round_lengths
        assert list(own.speculator.graphs.shorter) == list(lengths[:-1])
        assert lengths == (0, 1, 2, 3, 4) and set(manager._saved_by_short_rounds) == {0, 1}
        for points in manager._saved_by_short_rounds.values():
            assert [size for size, _ in points] == [1, 2] and all(seconds > 0 for _, seconds in points)
        expected, outputs = run_both(plain, llm, *few_requests(40, 4))
        # The durations of the steps have corrected what was measured.
        assert any(manager.costs.between(4, is_drawn=is_drawn) for is_drawn in (False, True))
        own.adaptive_verification = None
    forget(llm)
    assert tokens(outputs) == tokens(expected)


REASONS: dict[str, tuple[Any, str, Any]] = {
    "in a pipeline": ("parallel_config", "pipeline_parallel_size", 2),
    "vLLM names the adapter": ("", "lora_config", object()),
    "num_speculative_tokens_per_batch_size": (
        "speculative_config",
        "num_speculative_tokens_per_batch_size",
        [[1, 8, 3]],
    ),
    "this needs full CUDA graphs": ("compilation_config", "cudagraph_mode", CUDAGraphMode.PIECEWISE),
    "cudagraph_capture_sizes": ("compilation_config", "cudagraph_capture_sizes", [1024]),
}


@pytest.mark.parametrize("backend", ["triton"], indirect=True)
@pytest.mark.parametrize("adaptive", [None, True])
@pytest.mark.parametrize("reason", REASONS)
def test_where_trees_do_not_adapt_the_log_says_why(
    make_engine: MakeEngine, random_target: Path, backend: type[Any], reason: str, adaptive: bool | None
) -> None:
    llm = tree_engine(make_engine, random_target, backend)
    part, name, value = REASONS[reason]
    config = runner(llm).vllm_config
    with (
        as_on_a_gpu(llm, adaptive),
        patch.object(getattr(config, part) if part else config, name, value),
        patch.object(adaptive_report.logger, "log") as log,
    ):
        made = make_manager(llm)
    is_in_force = adaptive is True and "per_batch_size" in reason
    forget(llm)
    assert (made is not None) == is_in_force
    said = [(call.args[0], str(call.args[2])) for call in log.call_args_list]
    level = logging.INFO if adaptive is None else logging.WARNING
    assert is_in_force or [(at, text.startswith(reason)) for at, text in said] == [(level, True)]


def test_other_attention_backends_have_fixed_chains(make_engine: MakeEngine, random_target: Path) -> None:
    """A chain runs on a backend of vLLM's, whose graphs may hold one query length only: here the CPU's."""
    llm = make_engine(random_target, CHAIN)
    with as_on_a_gpu(llm, None), patch.object(adaptive_report.logger, "log") as log:
        assert make_manager(llm) is None
    assert "has no CUDA graphs for queries of mixed lengths" in log.call_args.args[2]
    with as_on_a_gpu(llm, False), patch.object(adaptive_report.logger, "log") as log:
        assert make_manager(llm) is None and not log.called
