# SPDX-License-Identifier: Apache-2.0
"""Shared by the engine tests: prompts, sampling parameters, running them, and the parts of an in-process engine."""

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch

# These tests inspect parts of vLLM's CPU build (its attention by name, its linear layers one by one).
cpu_only = pytest.mark.skipif(torch.version.cuda is not None, reason="inspects vLLM's CPU build")

TREE = {"method": "redrafter", "beam_width": 4, "beam_length": 4, "num_speculative_tokens": 16}
CHAIN = {"method": "redrafter", "beam_width": 1, "beam_length": 3}


def allow_tree_attention() -> None:
    """Let engines without the method use our attention backend too: they choose it by `attention_backend="CUSTOM"`."""
    from redrafter_vllm.integration.attention.select import register_tree_attention
    from redrafter_vllm.integration.patches.install import install_all

    install_all()
    register_tree_attention()


def random_prompts(count: int, vocab_size: int, *, seed: int = 0, longest: int = 200) -> list[list[int]]:
    """Prompts of mixed length; every third one begins with the same long prefix."""
    rng = random.Random(seed)
    shared = [rng.randrange(3, vocab_size) for _ in range(longest // 2)]
    prompts = []
    for index in range(count):
        own = [rng.randrange(3, vocab_size) for _ in range(rng.choice([1, 7, 33, longest // 3]))]
        prompts.append(shared[: rng.choice([32, longest // 2])] + own if index % 3 == 0 else own)
    return prompts


def params(**options: Any) -> Any:
    """Sampling parameters for requests of token ids, without text."""
    from vllm import SamplingParams

    return SamplingParams(**{"max_tokens": 32, "detokenize": False, **options})


def generate(llm: Any, prompts: Sequence[list[int]], sampling: Any, *, one_by_one: bool = False) -> list[Any]:
    """Request outputs, in order; `one_by_one` keeps the batch at one request."""
    requests = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
    if not one_by_one:
        return llm.generate(requests, sampling, use_tqdm=False)
    each = sampling if isinstance(sampling, list) else [sampling] * len(requests)
    outputs = []
    for request, own in zip(requests, each, strict=True):
        outputs += llm.generate([request], own, use_tqdm=False)
    return outputs


def tokens(outputs: Sequence[Any]) -> list[list[list[int]]]:
    """Token ids of every completion of every request."""
    return [[list(completion.token_ids) for completion in output.outputs] for output in outputs]


def core(llm: Any) -> Any:
    """The engine core of an in-process engine."""
    return llm.llm_engine.engine_core.engine_core


def worker(llm: Any) -> Any:
    """The only worker of an in-process engine."""
    return core(llm).model_executor.driver_worker.worker


def runner(llm: Any) -> Any:
    """The model runner of an in-process engine."""
    return worker(llm).model_runner


def scheduler(llm: Any) -> Any:
    """The scheduler of an in-process engine."""
    return core(llm).scheduler


def request_name(states: Any, row: int) -> str:
    """The name that a client gave to the request in a row of the runner's states; vLLM appends a part of its own."""
    return str(states.index_to_req_id[row]).rsplit("-", 1)[0]
