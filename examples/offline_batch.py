# SPDX-License-Identifier: Apache-2.0
"""Answers to a file of prompts, one on each line: python examples/offline_batch.py PROMPTS [MODEL]

Prints one JSON object per prompt, and at the end how many tokens each verification step gave.
"""

import json
import sys
from pathlib import Path

import torch
from vllm import LLM, SamplingParams


def main(prompts_file: str, model: str = "tests/assets/stdlib-llama") -> None:
    prompts = Path(prompts_file).read_text(encoding="utf-8").splitlines()
    llm = LLM(
        model,
        # `redrafter` is the drafter that belongs to the model; a directory or a hub id works in its place.
        # `adaptive` is off for the figure at the end: on a CPU trees adapt, and rounds that do not pay are left out.
        speculative_config={"model": "redrafter", "beam_width": 4, "beam_length": 4, "adaptive": False},
        max_model_len=1024,
        enforce_eager=not torch.cuda.is_available(),  # on a CPU compiling takes longer than these answers
        kv_cache_memory_bytes=1 << 28,  # 256 MiB, for a small machine; without it vLLM takes most of the GPU's memory
        disable_log_stats=False,  # keeps the counters that are read below
    )
    for output in llm.generate(prompts, SamplingParams(temperature=0.0, max_tokens=64)):
        print(json.dumps({"prompt": output.prompt, "text": output.outputs[0].text}))

    counts = {metric.name: metric.value for metric in llm.get_metrics() if hasattr(metric, "value")}
    steps, tokens = counts["vllm:redrafter_verifications"], counts["vllm:redrafter_tokens"]
    # Where drafting does not pay, an engine that adapts may verify nothing.
    print(f"{tokens / steps if steps else 1:.2f} tokens per step; plain decoding gives 1", file=sys.stderr)


if __name__ == "__main__":  # vLLM starts its engine in another process, which imports this file
    main(*sys.argv[1:])
