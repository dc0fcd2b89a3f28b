# SPDX-License-Identifier: Apache-2.0
"""After any accepted path the cache is, bit for bit, the one that plain decoding of the same tokens leaves.

This holds for a request's entries and for the blocks that prefix caching keeps for other requests.
"""

from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from redrafter_vllm.integration.versions import installed_before
from redrafter_vllm.ops.packed_attention import packed_entries
from tests.engine.cached_blocks import assert_same_blocks, empty_caches
from tests.engine.conftest import MakeEngine
from tests.engine.generation import (
    TREE,
    allow_tree_attention,
    cpu_only,
    generate,
    params,
    random_prompts,
    runner,
    scheduler,
    tokens,
)
from tests.engine.row_invariant import row_invariant
from tests.engine.scripted import scripted_trees, truths_of
from tests.models import VOCAB

MAX_TOKENS = 60


def cached_entries(llm: Any, length: int) -> list[torch.Tensor]:
    """Keys and values of the latest request's first `length` tokens, per layer: [kv heads, length, 2 * head size]."""
    model_runner = runner(llm)
    (row,) = model_runner.req_states.req_id_to_index.values()
    context = model_runner.compilation_config.static_forward_context
    entries = []
    for name in model_runner.kv_cache_config.kv_cache_groups[0].layer_names:
        cache = context[name].kv_cache
        block_size = cache.shape[2]
        blocks = model_runner.block_tables.block_tables[0].gpu[row, : -(-length // block_size)].long()
        both = torch.cat([part[blocks] for part in packed_entries(cache)], dim=-1)
        entries.append(both.transpose(0, 1).flatten(1, 2)[:, :length])
    return entries


@cpu_only
@pytest.mark.parametrize("block_size", [16, 32])
def test_cache_entries_are_those_of_plain_decoding(
    make_engine: MakeEngine, random_target: Path, block_size: int
) -> None:
    allow_tree_attention()
    shape = {"block_size": block_size, "enable_prefix_caching": False, "max_num_seqs": 1}
    plain = make_engine(random_target, attention_backend="CUSTOM", **shape)
    tree = make_engine(random_target, {**TREE, "beam_length": 6, "num_speculative_tokens": 24}, **shape)
    sampling = params(temperature=0.0, ignore_eos=True, max_tokens=MAX_TOKENS)
    for seed, prompt in enumerate(random_prompts(6, VOCAB, longest=120)):
        with row_invariant(plain):
            out = tokens(generate(plain, [prompt], sampling))[0][0]
        length = len(prompt) + MAX_TOKENS - 1  # the last token has been emitted, not computed
        expected = cached_entries(plain, length)
        with row_invariant(tree), scripted_trees(tree, {tuple(prompt): [*prompt, *out]}, seed=seed) as drawn:
            assert tokens(generate(tree, [prompt], sampling))[0][0] == out
        assert len(drawn) < 0.7 * MAX_TOKENS
        for layer, (entries, wanted) in enumerate(zip(cached_entries(tree, length), expected, strict=True)):
            assert wanted.abs().sum() > 0
            assert torch.equal(entries, wanted), f"layer {layer} differs"


@cpu_only
@pytest.mark.parametrize("asynchronous", [False, True])
def test_cached_blocks(make_engine: MakeEngine, random_target: Path, asynchronous: bool) -> None:
    """The blocks of emitted tokens are cached, with no entry of a rejected node."""
    plain, tree = empty_caches(make_engine, random_target, asynchronous=asynchronous)
    prompts = random_prompts(9, VOCAB, longest=120, seed=21)
    sampling = [params(temperature=0.6 * (i % 2), seed=i, ignore_eos=True, max_tokens=30 + i) for i in range(9)]
    with row_invariant(plain):
        outs = [out[0] for out in tokens(generate(plain, prompts, sampling))]
    truths = {tuple(prompt): [*prompt, *out] for prompt, out in zip(prompts, outs, strict=True)}
    with row_invariant(tree), scripted_trees(tree, truths) as drawn:
        assert [out[0] for out in tokens(generate(tree, prompts, sampling))] == outs
    assert len(drawn) < 0.7 * sum(map(len, outs))
    assert_same_blocks(tree, plain)


@pytest.mark.skipif(not installed_before("0.33"), reason="vLLM 0.33 itself caches blocks in every step with drafts")
def test_blocks_are_cached_outside_scheduling_only_at_a_stop(make_engine: MakeEngine, random_target: Path) -> None:
    """Once per request, not once per step: the blocks of a running request are cached when its steps are scheduled."""
    tree = make_engine(random_target, TREE, block_size=16, async_scheduling=False)
    manager = scheduler(tree).kv_cache_manager
    prompts = random_prompts(4, VOCAB, longest=60, seed=23)
    with patch.object(manager, "cache_blocks", wraps=manager.cache_blocks) as cache_blocks:
        generate(tree, prompts, params(temperature=0.0, ignore_eos=True, max_tokens=30))
    assert cache_blocks.call_count == len(prompts)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_request_continues_anothers_text(make_engine: MakeEngine, random_target: Path, asynchronous: bool) -> None:
    """Each prompt is the previous one with its output: its full blocks are found in the cache, and are right."""
    cold = make_engine(random_target, enable_prefix_caching=False)
    tree = make_engine(random_target, TREE, block_size=16, async_scheduling=asynchronous)
    sampling = [params(temperature=0.7 * (i % 2), seed=i, ignore_eos=True, max_tokens=50) for i in range(5)]
    prompts = random_prompts(5, VOCAB, longest=90, seed=22)
    for turn in range(3):
        outputs = generate(cold, prompts, sampling)
        truths = truths_of(prompts, outputs)
        with scripted_trees(tree, truths):
            own = generate(tree, prompts, sampling)
        assert tokens(own) == tokens(outputs)
        for prompt, output in zip(prompts, own, strict=True):
            # All tokens of the previous text but the last have been computed.
            assert not turn or output.num_cached_tokens == (len(prompt) - 1) // 16 * 16
        prompts = list(truths.values())
