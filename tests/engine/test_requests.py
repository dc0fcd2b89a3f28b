# SPDX-License-Identifier: Apache-2.0
"""Every kind of request, mixed in one batch with the others: same output as plain vLLM."""

from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from tests.engine.conftest import MakeEngine
from tests.engine.generation import CHAIN, TREE, cpu_only, generate, params, random_prompts, runner, scheduler, tokens
from tests.engine.scripted import run_both
from tests.models import VOCAB

NARROW = {"allowed_token_ids": list(range(5, 45))}

# Requests whose logits depend on earlier tokens, and requests whose logits do not.
ORDERED: list[dict[str, Any]] = [
    {"presence_penalty": 0.8},
    {"frequency_penalty": 0.4, "temperature": 0.7},
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 1.2, "temperature": 0.8, "top_k": 20},
]
UNORDERED: list[dict[str, Any]] = [
    {},
    {"temperature": 0.9},
    {"temperature": 0.8, "top_k": 7},
    {"temperature": 0.8, "top_p": 0.6, "min_p": 0.02},
    {"temperature": 1.0, "logit_bias": {11: 4.0, 17: -100.0}},
    {**NARROW},
    {**NARROW, "temperature": 1.1},
    {"min_tokens": 20, "stop_token_ids": list(range(3, 120)), "ignore_eos": False},
]


def mixed_params(kinds: list[dict[str, Any]], **common: Any) -> list[Any]:
    defaults = {"temperature": 0.0, "ignore_eos": True, "max_tokens": 40, **common}
    return [params(seed=100 + index, **{**defaults, **kind}) for index, kind in enumerate(kinds)]


@pytest.mark.parametrize("seed", range(3))
def test_mixed_batch(make_engine: MakeEngine, random_target: Path, seed: int) -> None:
    """Requests with and without penalties side by side, all on trees: penalties count the drafts on a node's path."""
    kinds = [kind for pair in zip(UNORDERED, ORDERED * 2, strict=True) for kind in pair]
    prompts = random_prompts(len(kinds), VOCAB, seed=seed)
    plain, tree = make_engine(random_target), make_engine(random_target, TREE)
    expected, outputs = run_both(plain, tree, prompts, mixed_params(kinds), seed)
    assert tokens(outputs) == tokens(expected)


def test_penalised_requests_keep_trees(make_engine: MakeEngine, random_target: Path) -> None:
    """Penalties and bad words follow a node's own path, so requests with them get trees with branches like others."""
    tree = make_engine(random_target, TREE)
    speculator = runner(tree).speculator
    prompts = random_prompts(4, VOCAB, longest=60)
    kinds = [{}, {"presence_penalty": 0.5}, {"bad_words": ["given by its ids"]}, {"repetition_penalty": 1.1}]
    sampling = mixed_params(kinds)
    sampling[2]._bad_words_token_ids = [[5, 6]]
    parents: dict[int, list[int]] = {}  # of the last tree of each request; the last step of all may draw none
    propose = speculator.propose

    def remember(batch: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        drafts = propose(batch, *args, **kwargs)
        for row in batch.idx_mapping_np.tolist():
            if count := int(speculator.rows.num_nodes[row]):
                parents[row] = speculator.rows.parents[row, :count].tolist()
        return drafts

    with patch.object(speculator, "propose", remember):
        generate(tree, prompts, sampling)
    assert parents.keys() == set(runner(tree).req_states.req_id_to_index.values())
    assert len(parents) == 4
    for own in parents.values():
        assert len(own) > TREE["beam_length"]
        assert own != list(range(-1, len(own) - 1))


def test_bad_words(make_engine: MakeEngine, random_target: Path) -> None:
    """Two-token bad words, banned by their ids; plain greedy decoding emits them when they are allowed."""
    plain, tree = make_engine(random_target), make_engine(random_target, TREE)
    prompts = random_prompts(4, VOCAB)
    free = tokens(generate(plain, prompts, mixed_params([{}] * 4)))
    sampling = mixed_params([{}] * 4)
    for own, (out,) in zip(sampling, free, strict=True):
        own._bad_words_token_ids = [out[4:6], out[9:11]]
        own.bad_words = ["two words", "given by their ids"]
    expected, outputs = run_both(plain, tree, prompts, sampling)
    assert tokens(expected) != free
    assert tokens(outputs) == tokens(expected)


def test_lengths_and_stops_inside_an_accepted_path(make_engine: MakeEngine, random_target: Path) -> None:
    plain, tree = make_engine(random_target), make_engine(random_target, TREE)
    prompts = random_prompts(12, VOCAB)
    full = tokens(generate(plain, prompts, mixed_params([{}] * 12)))
    for offset in (0, 3):
        kinds: list[dict[str, Any]] = []
        for index, (out,) in enumerate(full):
            at = 4 + (offset + index) % 9
            kinds.append([{"max_tokens": at}, {"stop_token_ids": [out[at]]}, {"min_tokens": 3}][index % 3])
        expected, outputs = run_both(plain, tree, prompts, mixed_params(kinds), seed=offset)
        assert tokens(outputs) == tokens(expected)
        reasons = [output.outputs[0].finish_reason for output in outputs]
        assert reasons == [output.outputs[0].finish_reason for output in expected]
        assert {"length", "stop"} <= set(reasons)


def test_up_to_max_model_len(make_engine: MakeEngine, random_target: Path) -> None:
    options = {"max_model_len": 96}
    plain, tree = make_engine(random_target, **options), make_engine(random_target, TREE, **options)
    prompts = [
        prompt[:size]
        for prompt, size in zip(random_prompts(6, VOCAB, longest=280), (90, 60, 94, 33, 1, 80), strict=True)
    ]
    sampling = mixed_params([{}, {"temperature": 0.8}] * 3, max_tokens=200)
    expected, outputs = run_both(plain, tree, prompts, sampling)
    assert tokens(outputs) == tokens(expected)
    assert all(len(prompt) + len(out.outputs[0].token_ids) == 96 for prompt, out in zip(prompts, outputs, strict=True))


def test_several_completions(make_engine: MakeEngine, random_target: Path) -> None:
    plain, tree = make_engine(random_target), make_engine(random_target, TREE)
    prompts = random_prompts(3, VOCAB)
    sampling = params(n=3, temperature=0.9, seed=5, ignore_eos=True, max_tokens=24)
    expected = tokens(generate(plain, prompts, sampling))
    assert all(len({tuple(out) for out in outs}) == 3 for outs in expected)
    assert tokens(generate(tree, prompts, sampling)) == expected


def test_preemption(make_engine: MakeEngine, random_target: Path) -> None:
    """A cache too small for all requests: some are preempted and resumed, without their old trees."""
    plain = make_engine(random_target)
    small = {"num_gpu_blocks_override": 26, "block_size": 16, "max_model_len": 256}
    tree = make_engine(random_target, TREE, disable_log_stats=False, **small)
    prompts = [prompt[:40] for prompt in random_prompts(10, VOCAB, longest=90)]
    sampling = mixed_params([{}, {"temperature": 0.8}] * 5, max_tokens=70)
    before = preemptions(tree)
    expected, outputs = run_both(plain, tree, prompts, sampling)
    assert tokens(outputs) == tokens(expected)
    assert preemptions(tree) > before


def preemptions(llm: Any) -> int:
    (metric,) = [metric for metric in llm.get_metrics() if metric.name == "vllm:num_preemptions"]
    return int(metric.value)


def test_abort_in_mid_step(make_engine: MakeEngine, random_target: Path) -> None:
    """Requests aborted between steps have no effect on requests that reuse their rows."""
    plain, tree = make_engine(random_target), make_engine(random_target, TREE)
    prompts = random_prompts(16, VOCAB, seed=3)
    sampling = mixed_params([{}, {"temperature": 0.9}] * 8)
    expected = tokens(generate(plain, prompts, sampling))
    engine = tree.llm_engine
    finished: dict[str, list[int]] = {}
    for index, (prompt, own) in enumerate(zip(prompts, sampling, strict=True)):
        engine.add_request(f"r{index}", {"prompt_token_ids": prompt}, own)
    aborted = [f"r{index}" for index in range(0, 16, 3)]
    for step in range(400):
        if step % 4 == 3 and aborted:
            engine.abort_request([aborted.pop()])
        for output in engine.step():
            if output.finished:
                finished[output.request_id] = list(output.outputs[0].token_ids)
        if not engine.has_unfinished_requests():
            break
    survivors = {f"r{index}": expected[index][0] for index in range(16) if index % 3}
    assert {name: finished.get(name) for name in survivors} == survivors
    assert scheduler(tree).get_num_unfinished_requests() == 0


def test_prefix_cache_between_requests(make_engine: MakeEngine, random_target: Path) -> None:
    """A second request continues from blocks of accepted nodes, which had been in scattered slots."""
    plain, tree = make_engine(random_target), make_engine(random_target, TREE, block_size=16)
    prompts = random_prompts(5, VOCAB, longest=90, seed=9)
    sampling = mixed_params([{}] * 5, max_tokens=60)
    expected, outputs = run_both(plain, tree, prompts, sampling)
    assert tokens(outputs) == tokens(expected)
    longer = [[*prompt, *out[0], 7, 8, 9] for prompt, out in zip(prompts, tokens(expected), strict=True)]
    expected, outputs = run_both(plain, tree, longer, sampling)
    assert tokens(outputs) == tokens(expected)
    assert all(output.num_cached_tokens >= 48 for output in outputs)


@cpu_only
def test_a_plain_chain(make_engine: MakeEngine, random_target: Path) -> None:
    """One beam: vLLM's own attention, every kind of request."""
    plain, chain = make_engine(random_target), make_engine(random_target, CHAIN)
    backends = {group.backend.get_name() for groups in runner(chain).attn_groups for group in groups}
    assert backends == {"CPU_ATTN"}
    kinds = UNORDERED + ORDERED
    prompts = random_prompts(len(kinds), VOCAB, seed=4)
    expected, outputs = run_both(plain, chain, prompts, mixed_params(kinds))
    assert tokens(outputs) == tokens(expected)
