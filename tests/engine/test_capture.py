# SPDX-License-Identifier: Apache-2.0
"""vLLM's other calls of our hooks: preparing the capture of its graphs, and dummy runs."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.conftest import MakeEngine
from tests.engine.generation import CHAIN, TREE, generate, params, random_prompts, runner, tokens
from tests.models import VOCAB


def capture_inputs(llm: Any, num_reqs: int, num_tokens: int, *, full: bool) -> Any:
    """The preparation of one graph, as `ModelCudaGraphManager.capture` calls it."""
    from vllm.v1.worker.gpu.cudagraph_utils import prepare_inputs_to_capture

    own = runner(llm)
    return prepare_inputs_to_capture(
        num_reqs,
        num_tokens,
        own.model_state,
        own.input_buffers,
        own.block_tables,
        own.attn_groups,
        own.kv_cache_config,
        full_cudagraph=full,
        max_query_len=num_tokens // num_reqs if full else None,
    )


def own_rows(llm: Any) -> list[torch.Tensor]:
    """The trees of all requests, without the padding row."""
    rows = runner(llm).speculator.rows
    return [part[: rows.padding_row].clone() for part in rows.trees]


@pytest.mark.parametrize("speculative", [TREE, CHAIN], ids=["tree", "chain"])
def test_preparing_captures(make_engine: MakeEngine, random_target: Path, speculative: dict[str, Any]) -> None:
    """Of verification steps (1 + N tokens each), of plain decodes and of mixed batches."""
    llm = make_engine(random_target, speculative)
    prompts, sampling = random_prompts(3, VOCAB), params(temperature=0.0, ignore_eos=True, max_tokens=12)
    expected = tokens(generate(llm, prompts, sampling))
    own = runner(llm)
    query_len = own.decode_query_len
    assert query_len == 1 + own.speculator.drafting.num_speculative_tokens
    before = own_rows(llm)
    for num_reqs, num_tokens, full in (
        (8, 8 * query_len, True),
        (3, 3 * query_len, True),
        (1, query_len, True),
        (8, 8, True),
        (8, 61, False),
    ):
        state = capture_inputs(llm, num_reqs, num_tokens, full=full)
        assert set(state.attn_metadata) == set(own.kv_cache_config.kv_cache_groups[0].layer_names)
        # A graph is recorded on these buffers; a capture run has no drafts to rotate.
        assert not own.input_buffers.positions[:num_tokens].any()
        assert own.speculator.step.drafts is None and own.speculator.step.walk is None
    assert all(torch.equal(*pair) for pair in zip(before, own_rows(llm), strict=True))
    assert tokens(generate(llm, prompts, sampling)) == expected


def test_dummy_runs_between_steps(make_engine: MakeEngine, random_target: Path) -> None:
    """As in ranks without requests, while requests of ours are in flight: their trees are kept."""
    prompts = random_prompts(3, VOCAB, longest=60)
    sampling = params(temperature=0.0, ignore_eos=True, max_tokens=16)
    expected = [out[0] for out in tokens(generate(make_engine(random_target), prompts, sampling))]
    llm = make_engine(random_target, TREE)
    engine, own = llm.llm_engine, runner(llm)
    for number, prompt in enumerate(prompts):
        engine.add_request(f"dummy-{number}", {"prompt_token_ids": prompt}, sampling)
    outputs: dict[str, list[int]] = {}
    sizes = [(own.decode_query_len * 2, True), (5, False), (8 * own.decode_query_len, True)]
    steps = 0
    while engine.has_unfinished_requests():
        for output in engine.step():
            if output.finished:
                outputs[output.request_id] = list(output.outputs[0].token_ids)
        before = own_rows(llm)
        num_tokens, uniform = sizes[steps % len(sizes)]
        own._dummy_run(num_tokens, uniform_decode=uniform)
        assert all(torch.equal(*pair) for pair in zip(before, own_rows(llm), strict=True))
        steps += 1
    assert [outputs[f"dummy-{number}"] for number in range(len(prompts))] == expected
    assert steps > 3


def test_caches_are_not_kept(make_engine: MakeEngine, random_target: Path) -> None:
    """vLLM frees the caches of its memory profiling by replacing the layers' tensors; nothing else may hold them."""
    state = runner(make_engine(random_target, TREE)).model_state
    layer = state.vllm_config.compilation_config.static_forward_context["model.layers.1.self_attn.attn"]
    kept = layer.kv_cache
    try:
        layer.kv_cache = torch.empty_like(kept)
        assert all(cache is not kept for cache in state.kv_caches)
    finally:
        layer.kv_cache = kept
