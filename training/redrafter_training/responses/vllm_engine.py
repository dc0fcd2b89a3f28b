# SPDX-License-Identifier: Apache-2.0
"""Responses sampled with vLLM. No other module of the training imports vLLM."""

import importlib.util
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from tqdm import tqdm
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from redrafter_training.data.report import DataError
from redrafter_training.responses.config import EngineSettings, ResponseJob
from redrafter_training.responses.engine import Completion, Request
from redrafter_training.responses.generator import ResponseGenerator
from redrafter_training.target.properties import (
    TargetFactsError,
    facts_of,
    load_config,
    read_end_tokens,
    read_facts,
)
from redrafter_training.utils.memory import free_memory
from redrafter_vllm.utils.install import install_vllm

# On a CPU vLLM would take nearly all of the memory, and compiling takes longer than a small piece of work.
MAX_KV_CACHE = 4 << 30  # bytes
MIN_TOKENS_TO_COMPILE = 100_000
MAX_STEP_TOKENS = 4096
# Runner V1 has vLLM's native kernels on a CPU; V2 has none there.
CPU_RUNNER = {"VLLM_USE_V2_MODEL_RUNNER": "0"}


def has_vllm() -> bool:
    return importlib.util.find_spec("vllm") is not None


class EngineError(ValueError):
    """vLLM does not start: it does not know the target or its arguments, or has not enough memory."""


class VllmEngine:
    """An `Engine` (see there) that keeps one `LLM` of vLLM for all batches.

    A response ends once a stretch of `longest_repeat` tokens or more has come twice in a row, so that it may hold the
    first repetition, which `load_responses` cuts.

    Args:
        ends: end tokens of the target.
        window: maximum number of tokens of a prompt with its response.
        tokens: roughly how many will be sampled.
        progress: whether to show vLLM's bar, which moves by response, below the caller's.

    Raises:
        EngineError: the engine does not start.
    """

    seeds_each = True  # requests of a call may have different seeds

    def __init__(
        self, job: EngineSettings, ends: Sequence[int], *, window: int, tokens: int, progress: bool = False
    ) -> None:
        # In this process: an engine in a separate process may outlive this one when it is killed, and keep its memory.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        # vLLM's pages of settings would hide the progress bar; setting the variable shows them.
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        from vllm import LLM

        on_cuda = job.device != "cpu" and torch.cuda.is_available()
        if job.device == "cuda" and not on_cuda:
            raise ValueError("--device cuda needs a GPU, and torch finds none here")
        dtype = "bfloat16" if job.target_dtype == "auto" and on_cuda else job.target_dtype
        options: dict[str, Any] = {
            "dtype": dtype,
            "max_model_len": window,
            "skip_tokenizer_init": True,
            "seed": 0,  # every request has one
            "trust_remote_code": job.trust_remote_code,
            # Of the target's generation config only the end tokens count (see `read_end_tokens`).
            "generation_config": "vllm",
            **({} if on_cuda else _cpu_options(window, tokens)),
            **job.engine,
        }
        self._ends = list(ends)
        self._progress = partial(tqdm, leave=False, position=1) if progress else False
        # vLLM reads it at start and again for every request.
        self._variables = {} if on_cuda else CPU_RUNNER
        try:
            with _environment(self._variables):
                self._engine = LLM(job.target, **options)
        except Exception as problem:  # vLLM raises dozens of types here
            raise EngineError(f"vLLM cannot start with {job.target}: {str(problem).strip()}") from problem

    @property
    def dtype(self) -> str:
        return str(self._engine.model_config.dtype).removeprefix("torch.")

    def __call__(self, requests: Sequence[Request]) -> list[Completion]:
        # One sampled request in a step costs noise for the logits of all: greedy ones go first, and are done by then.
        order = sorted(range(len(requests)), key=lambda place: requests[place].temperature > 0)
        with _environment(self._variables):
            outputs = self._engine.generate(
                [{"prompt_token_ids": list(requests[place].prompt_ids)} for place in order],
                [self._sampling(requests[place]) for place in order],
                use_tqdm=self._progress,
            )
        sampled = {place: output.outputs[0] for place, output in zip(order, outputs, strict=True)}
        # A stop for repetition has another reason.
        return [
            Completion(tuple(sampled[place].token_ids), sampled[place].finish_reason == "stop")
            for place in range(len(requests))
        ]

    def _sampling(self, request: Request) -> Any:
        from vllm import SamplingParams

        return SamplingParams(
            temperature=request.temperature,
            seed=request.seed,
            max_tokens=request.max_tokens,
            stop_token_ids=self._ends,
            repetition_detection=_repetition(request.longest_repeat),
            detokenize=False,
        )


def _cpu_options(window: int, tokens: int) -> dict[str, Any]:
    free = free_memory(torch.device("cpu"))
    return {
        "kv_cache_memory_bytes": MAX_KV_CACHE if free is None else min(MAX_KV_CACHE, free // 4),
        "enforce_eager": tokens < MIN_TOKENS_TO_COMPILE,
        # Runner V1 ends the engine on a CPU when it computes a part of a prompt that has a seed: it sets the offset of
        # the request's generator back, which a CPU's does not have.
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(MAX_STEP_TOKENS, window),
    }


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Sets variables that have no value yet, within the block."""
    added = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def _repetition(longest_repeat: int) -> Any:
    """vLLM's parameters. A period shorter than `longest_repeat` has a multiple in this range."""
    from vllm.sampling_params import RepetitionDetectionParams

    if not longest_repeat:
        return None
    return RepetitionDetectionParams(max_pattern_size=2 * longest_repeat, min_pattern_size=longest_repeat, min_count=2)


def check_vllm() -> None:
    """Raises DataError where vLLM is not installed."""
    if not has_vllm():
        raise DataError(f"responses are generated with vLLM, which is not installed: {install_vllm()}")


def load_tokenizer(job: EngineSettings, length: int, key: str) -> PreTrainedTokenizerBase:
    """The target's tokenizer, after a check that vLLM is there and the target takes texts of `length` tokens.

    Args:
        key: the option that sets the length, for the message.

    Raises:
        DataError: vLLM is not installed, the target cannot be loaded, or it takes fewer tokens.
    """
    check_vllm()
    try:
        config = load_config(job.target, trust_remote_code=job.trust_remote_code)
        tokenizer = AutoTokenizer.from_pretrained(job.target, trust_remote_code=job.trust_remote_code)
        facts_of(job.target, config).check_length(length, key)
    except TargetFactsError as problem:
        raise DataError(str(problem)) from problem
    except (OSError, ValueError) as problem:
        raise DataError(f"the target {job.target} cannot be loaded: {str(problem).splitlines()[0]}") from problem
    return tokenizer


def make_engine(
    job: EngineSettings, tokenizer: PreTrainedTokenizerBase, *, window: int, tokens: int, progress: bool = False
) -> VllmEngine:
    """An engine that ends responses with the target's end tokens. Arguments as for `VllmEngine`."""
    ends = read_end_tokens(job.target, tokenizer, trust_remote_code=job.trust_remote_code)
    return VllmEngine(job, ends, window=window, tokens=tokens, progress=progress)


def make_generator(job: ResponseJob, texts: int) -> ResponseGenerator:
    """A generator with a new engine, for so many texts."""
    trusted = {"trust_remote_code": job.trust_remote_code}
    tokenizer = AutoTokenizer.from_pretrained(job.target, **trusted)
    tokens = texts * job.window // 2
    engine = make_engine(job, tokenizer, window=job.window, tokens=tokens, progress=not job.on_ray)
    return ResponseGenerator(job, tokenizer, engine, read_facts(job.target, **trusted).vocab_size)
