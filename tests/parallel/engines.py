# SPDX-License-Identifier: Apache-2.0
"""Engines on workers in separate processes, and their tokens."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tests.engine.generation import generate, params, tokens
from tests.paths import ASSET

OPTIONS: dict[str, Any] = dict(
    model=str(ASSET),
    dtype="float32",
    max_model_len=512,
    max_num_seqs=8,
    max_num_batched_tokens=256,
    enforce_eager=True,
    skip_tokenizer_init=True,
    kv_cache_memory_bytes=1 << 26,
    disable_log_stats=False,
    seed=0,
)
NUM_PROMPTS = 8

Prompts = list[list[int]]


@dataclass(frozen=True)
class Run:
    """An engine's tokens for every prompt, greedy and seeded, and the accepted tokens per draft."""

    greedy: list[Any]
    seeded: list[Any]
    accepted: float


@contextmanager
def engine(**options: Any) -> Iterator[Any]:
    """An `LLM` on the committed target, whose workers end with the block."""
    from vllm import LLM

    if (speculative := options.get("speculative_config")) is not None:
        # Both one worker and several draw every tree; they are compared.
        options["speculative_config"] = {"adaptive": False, "prompt_lookup": False, **speculative}
    llm = LLM(**{**OPTIONS, **options})
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()


def run(llm: Any, prompts: Prompts) -> Run:
    before = counted(llm.get_metrics())
    outputs = [tokens(generate(llm, prompts, sampling(mode))) for mode in ("greedy", "seeded")]
    return Run(*outputs, accepted=per_draft(counted(llm.get_metrics()) - before))


def sampling(mode: str) -> list[Any]:
    temperature = 0.0 if mode == "greedy" else 0.8
    return [params(temperature=temperature, seed=index, max_tokens=16) for index in range(NUM_PROMPTS)]


def accepted_per_draft(metrics: Sequence[Any], replica: str = "0") -> float:
    """Accepted tokens per step with drafts, since the start; 0 without such a step."""
    return per_draft(counted(metrics, replica))


def counted(metrics: Sequence[Any], replica: str = "0") -> Counter[str]:
    """vLLM's counters of speculative decoding, without their common prefix."""
    return Counter(
        {
            metric.name.removeprefix("vllm:spec_decode_num_"): metric.value
            for metric in metrics
            if metric.labels.get("engine") == replica and hasattr(metric, "value")
        }
    )


def per_draft(counts: Counter[str]) -> float:
    return counts["accepted_tokens"] / counts["drafts"] if counts["drafts"] else 0.0
