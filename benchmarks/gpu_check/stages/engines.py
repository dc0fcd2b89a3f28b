# SPDX-License-Identifier: Apache-2.0
"""Engines on the committed pair, and how two of them differ."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from benchmarks.compare import common_prefix
from benchmarks.demo.options import ASSET
from benchmarks.serving.speedup.engine import EngineProcess, Job
from redrafter_training.data.python_corpus import extract_prompts, load_corpus, split

TREE = {"method": "redrafter", "model": str(ASSET / "redrafter"), "beam_width": 4, "beam_length": 4}


@dataclass(frozen=True)
class Sizes:
    """How much of it."""

    prompts: int
    new_tokens: int


SIZES = {"cuda": Sizes(64, 96), "cpu": Sizes(4, 16)}


def make_engine(
    name: str, speculative: dict[str, Any] | None, sizes: Sizes, scratch: Path, **options: Any
) -> EngineProcess:
    """On the committed target, with room for eight requests; in float32 without TF32."""
    tokenizer = AutoTokenizer.from_pretrained(ASSET)
    texts = extract_prompts(split(load_corpus())[1], sizes.prompts, seed=3, max_chars=600)
    prompts = [list(tokenizer(text)["input_ids"])[:256] for text in texts]
    engine = {
        "max_model_len": 512,
        "max_num_seqs": 8,
        "kv_cache_memory_bytes": 1 << 28,
        # Whatever the cache's size, vLLM starts only where this part of the GPU is free, and several start at once.
        "gpu_memory_utilization": 0.1,
        "disable_log_stats": False,
        "skip_tokenizer_init": True,
        **options,
    }
    job = Job(name, str(ASSET), speculative, engine, prompts, sizes.new_tokens, {"NVIDIA_TF32_OVERRIDE": "0"})
    return EngineProcess(job, scratch / f"{name}.log")


@dataclass(frozen=True)
class Difference:
    """Where two outputs part, and how much likelier the first one's token was there; None: more than is known."""

    request: int
    place: int
    gap: float | None


def differences(
    plain: Sequence[Sequence[int]], other: Sequence[Sequence[int]], logprobs: Sequence[Sequence[dict[int, float]]]
) -> list[Difference]:
    """First difference of each request; `logprobs` are plain's, by request, place and token."""
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
    """Requests that differ."""
    return sum(list(a) != list(b) for a, b in zip(one, other, strict=True))


def max_by_rounding(itself: int) -> int:
    """Requests that may differ in bfloat16, where so many of an engine's own do at another batch size."""
    return max(2, 2 * itself)
