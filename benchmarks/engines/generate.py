# SPDX-License-Identifier: Apache-2.0
"""`LLM.generate` in a separate process: `python -m benchmarks.engines.generate JOB.json RESULT.json`.

Each engine has its process: vLLM reads environment variables once, and two engines in one process share counters.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.engines.steps import decoding, recorded_steps
from redrafter_vllm.bench.acceptance import DraftCounters


def read_counters(llm: Any) -> DraftCounters:
    """vLLM's speculative-decoding counters; zeros where nothing is drafted."""
    verifications, accepted = 0, []
    for metric in llm.get_metrics():
        if metric.name == "vllm:spec_decode_num_drafts":
            verifications += metric.value
        elif metric.name == "vllm:spec_decode_num_accepted_tokens_per_pos":
            accepted = metric.values
    return DraftCounters(verifications, tuple(accepted))


def read_preemptions(llm: Any) -> int:
    """Preemptions so far: how often vLLM has freed a request's cache, to compute it again later."""
    return int(sum(metric.value for metric in llm.get_metrics() if metric.name == "vllm:num_preemptions"))


def run(
    llm: Any, prompts: list[list[int]], sampling: Any, finished: Callable[[int], None] | None = None
) -> dict[str, Any]:
    """`LLM.generate` on all prompts: tokens, tokens by step, counters and seconds; log-probabilities where requested.

    `decoding` has the tokens and seconds after every prompt has been computed; `most_at_once` is the largest number of
    requests that one step emitted tokens for. `finished` is told how many more requests have finished.
    """
    requests = [{"prompt_token_ids": prompt} for prompt in prompts]
    before, preempted, started = read_counters(llm), read_preemptions(llm), time.perf_counter()
    with recorded_steps(llm, finished) as steps:
        outputs = llm.generate(requests, sampling, use_tqdm=False)
    seconds = time.perf_counter() - started
    # Request ids inside the engine may have a suffix; their numbers follow the prompts' order.
    by_arrival = sorted(steps.by_request.items(), key=lambda item: int(item[0].split("-")[0]))
    return {
        "tokens": [list(output.outputs[0].token_ids) for output in outputs],
        "steps": [counts for _, counts in by_arrival],
        "logprobs": [_plain_logprobs(output.outputs[0].logprobs) for output in outputs],
        "seconds": seconds,
        "decoding": decoding(steps.in_order),
        "most_at_once": max(step.requests for step in steps.in_order),
        "preemptions": read_preemptions(llm) - preempted,
        "counters": asdict(read_counters(llm) - before),
    }


def _plain_logprobs(logprobs: Any) -> list[dict[int, float]]:
    """Log-probabilities by position and token id, without vLLM's types."""
    return [{token: entry.logprob for token, entry in position.items()} for position in logprobs or []]


def serve_job(job: dict[str, Any]) -> dict[str, Any]:
    """Start the engine that `job` describes and run its prompts twice: greedily, and with one seed per prompt."""
    from vllm import LLM, SamplingParams

    started = time.perf_counter()
    llm = LLM(job["target"], speculative_config=job["speculative"], **job["engine"])
    start_seconds = time.perf_counter() - started
    prompts, common = job["prompts"], {"max_tokens": job["max_tokens"], "detokenize": False}
    greedy = SamplingParams(temperature=0.0, **common)
    seeded = [SamplingParams(temperature=job["temperature"], seed=index, **common) for index in range(len(prompts))]
    # Costs of the first use belong to the start. Reversed prompts share no full cache block with the measured ones.
    warm_up = SamplingParams(temperature=0.8, seed=0, max_tokens=8, detokenize=False)
    llm.generate([{"prompt_token_ids": prompt[::-1]} for prompt in prompts[:2]], warm_up, use_tqdm=False)
    return {
        "start_seconds": start_seconds,
        "runner": "V2" if llm.llm_engine.vllm_config.use_v2_model_runner else "V1",
        "greedy": run(llm, prompts, greedy),
        "seeded": run(llm, prompts, seeded),
    }


def main() -> None:
    job_file, result_file = map(Path, sys.argv[1:])
    result = serve_job(json.loads(job_file.read_text()))
    result_file.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
