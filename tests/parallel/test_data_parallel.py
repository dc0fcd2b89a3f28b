# SPDX-License-Identifier: Apache-2.0
"""Data parallelism: two replicas behind one front end."""

import asyncio
from typing import Any

import pytest

from tests.engine.generation import TREE
from tests.parallel.engines import OPTIONS, Prompts, Run, accepted_per_draft, sampling

FIXED = {**TREE, "adaptive": False}  # whether drafting pays depends on what else runs on the machine


@pytest.mark.engine
def test_tokens_are_those_of_plain_vllm(prompts: Prompts, plain: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    # From vLLM 0.33 on each replica of a CPU takes the next entry of this list, and without it the next NUMA node.
    monkeypatch.setenv("CPU_VISIBLE_MEMORY_NODES", "0,0")
    outputs, accepted = asyncio.run(run_replicas(prompts))
    assert outputs == [plain.greedy, plain.seeded]
    assert min(accepted) > 0.5


async def run_replicas(prompts: Prompts) -> tuple[list[Any], list[float]]:
    """Every second prompt on each of two replicas: their tokens, and each one's accepted tokens per draft."""
    from vllm import AsyncEngineArgs
    from vllm.sampling_params import RequestOutputKind
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.metrics.reader import get_metrics_snapshot

    llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**OPTIONS, data_parallel_size=2, speculative_config=FIXED))

    async def complete(index: int, own: Any, name: str) -> list[list[int]]:
        own.output_kind = RequestOutputKind.FINAL_ONLY
        request = {"prompt_token_ids": prompts[index]}
        async for output in llm.generate(request, own, name, data_parallel_rank=index % 2):
            last = output
        return [list(completion.token_ids) for completion in last.outputs]

    try:
        outputs = [
            await asyncio.gather(*(complete(index, own, f"{mode}-{index}") for index, own in enumerate(sampling(mode))))
            for mode in ("greedy", "seeded")
        ]
        return outputs, [accepted_per_draft(get_metrics_snapshot(), replica) for replica in ("0", "1")]
    finally:
        llm.shutdown()
