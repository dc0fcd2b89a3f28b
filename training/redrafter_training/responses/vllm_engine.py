# SPDX-License-Identifier: Apache-2.0
"""Responses sampled with vLLM. No other module of the training imports vLLM."""

import importlib.util
import os
from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoTokenizer

from redrafter_training.responses.config import ResponseJob
from redrafter_training.responses.engine import Completion, Request
from redrafter_training.responses.generator import ResponseGenerator
from redrafter_training.target.properties import read_end_tokens, read_facts

# Small enough for a machine without a GPU, where vLLM would take nearly all of its memory and compile for long.
ON_CPU = {"enforce_eager": True, "kv_cache_memory_bytes": 1 << 30}


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

    Raises:
        EngineError: the engine does not start.
    """

    def __init__(self, job: ResponseJob, ends: Sequence[int]) -> None:
        # In this process: an engine in a separate process may outlive this one when it is killed, and keep its memory.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        # vLLM's pages of settings would hide the progress bar; setting the variable shows them.
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        from vllm import LLM

        on_cuda = job.device != "cpu" and torch.cuda.is_available()
        if job.device == "cuda" and not on_cuda:
            raise ValueError("--device cuda needs a GPU, and torch finds none here")
        dtype = job.target_dtype if job.target_dtype != "auto" else "bfloat16" if on_cuda else "float32"
        options: dict[str, Any] = {
            "dtype": dtype,
            "max_model_len": job.window,
            "skip_tokenizer_init": True,
            "seed": job.seed,
            "trust_remote_code": job.trust_remote_code,
            # Of the target's generation config only the end tokens count (see `read_end_tokens`).
            "generation_config": "vllm",
            **({} if on_cuda else ON_CPU),
            **job.engine,
        }
        self._ends = list(ends)
        try:
            self._engine = LLM(job.target, **options)
        except Exception as problem:  # vLLM raises dozens of types here
            raise EngineError(f"vLLM cannot start with {job.target}: {str(problem).strip()}") from problem

    def __call__(self, requests: Sequence[Request]) -> list[Completion]:
        outputs = self._engine.generate(
            [{"prompt_token_ids": list(request.prompt_ids)} for request in requests],
            [self._sampling(request) for request in requests],
            use_tqdm=False,
        )
        first = [output.outputs[0] for output in outputs]
        # A stop for repetition has another reason.
        return [Completion(tuple(sampled.token_ids), sampled.finish_reason == "stop") for sampled in first]

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


def _repetition(longest_repeat: int) -> Any:
    """vLLM's parameters. A period shorter than `longest_repeat` has a multiple in this range."""
    from vllm.sampling_params import RepetitionDetectionParams

    if not longest_repeat:
        return None
    return RepetitionDetectionParams(max_pattern_size=2 * longest_repeat, min_pattern_size=longest_repeat, min_count=2)


def make_generator(job: ResponseJob) -> ResponseGenerator:
    """A generator with a new engine."""
    trusted = {"trust_remote_code": job.trust_remote_code}
    tokenizer = AutoTokenizer.from_pretrained(job.target, **trusted)
    engine = VllmEngine(job, read_end_tokens(job.target, tokenizer, **trusted))
    return ResponseGenerator(job, tokenizer, engine, read_facts(job.target, **trusted).vocab_size)
