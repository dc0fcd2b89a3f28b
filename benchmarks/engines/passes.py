# SPDX-License-Identifier: Apache-2.0
"""A pass of an engine over prompts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.engines.generate import run
from redrafter_vllm.bench.engine import Finished, Job


@dataclass(frozen=True)
class Pass:
    """All prompts at once, as many as the engine runs at a time. With a temperature, request i samples with seed i."""

    prompts: Sequence[Sequence[int]]
    max_tokens: int
    temperature: float = 0.0
    end_tokens: tuple[int, ...] = ()

    def answer(self, llm: Any, job: Job, finished: Finished) -> dict[str, Any]:
        """See `benchmarks.engines.generate.run`."""
        from vllm import SamplingParams

        llm.reset_prefix_cache()
        sampling = [
            SamplingParams(
                temperature=self.temperature,
                seed=index if self.temperature else None,
                max_tokens=self.max_tokens,
                stop_token_ids=list(self.end_tokens),
                detokenize=False,
            )
            for index in range(len(self.prompts))
        ]
        return run(llm, [list(prompt) for prompt in self.prompts], sampling, finished)
