# SPDX-License-Identifier: Apache-2.0
"""Engines on the committed target and drafter, and differences between their outputs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from benchmarks.assets import ASSET, DRAFTER, held_out_prompts, tokenized
from redrafter_vllm.bench.compare import common_prefix
from redrafter_vllm.bench.engine import EngineProcess, Job

TREE = {
    "method": "redrafter",
    "model": str(ASSET / DRAFTER),
    "beam_width": 4,
    "beam_length": 4,
    "adaptive": False,  # every step is to have drafts
}


@dataclass(frozen=True)
class Sizes:
    """Number of prompts, and tokens that each is continued by."""

    prompts: int
    new_tokens: int


SIZES = {"cuda": Sizes(64, 96), "cpu": Sizes(4, 16)}


def make_engine(
    name: str, speculative: dict[str, Any] | None, sizes: Sizes, scratch: Path, **options: Any
) -> EngineProcess:
    """An engine on the committed target, for up to eight requests at a time; TF32 is off."""
    texts = held_out_prompts(sizes.prompts, seed=3, max_chars=600)
    prompts = tokenized(texts, AutoTokenizer.from_pretrained(ASSET), max_tokens=256)
    engine = {
        "max_model_len": 512,
        "max_num_seqs": 8,
        "kv_cache_memory_bytes": 1 << 28,
        # vLLM starts only if this fraction of the GPU is free, whatever the cache's size, and several start at once.
        "gpu_memory_utilization": 0.1,
        "disable_log_stats": False,
        "skip_tokenizer_init": True,
        **options,
    }
    job = Job(name, str(ASSET), speculative, engine, prompts, sizes.new_tokens, {"NVIDIA_TF32_OVERRIDE": "0"})
    return EngineProcess(job, scratch / f"{name}.log")


@dataclass(frozen=True)
class Difference:
    """First difference of two outputs of one request."""

    request: int
    place: int
    gap: float | None  # log-probability of the first output's token minus the other's; None if not returned


def differences(
    plain: Sequence[Sequence[int]], other: Sequence[Sequence[int]], logprobs: Sequence[Sequence[dict[int, float]]]
) -> list[Difference]:
    """First difference of each differing request; `logprobs` are those of `plain`, by request, position and token."""
    found = []
    for request, (a, b) in enumerate(zip(plain, other, strict=True)):
        place = common_prefix(a, b)
        if place == max(len(a), len(b)):
            continue
        gap = None
        if place < min(len(a), len(b)) and logprobs[request]:
            shown = logprobs[request][place]
            gap = shown[a[place]] - shown[b[place]] if b[place] in shown else None
        found.append(Difference(request, place, gap))
    return found


def count_differences(one: Sequence[Sequence[int]], other: Sequence[Sequence[int]]) -> int:
    """Number of requests that differ."""
    return sum(list(a) != list(b) for a, b in zip(one, other, strict=True))


def max_by_rounding(itself: int) -> int:
    """Number of requests that rounding may change in bfloat16, if another batch size changes `itself` of them."""
    return max(2, 2 * itself)
