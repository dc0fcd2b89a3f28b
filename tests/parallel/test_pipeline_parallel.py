# SPDX-License-Identifier: Apache-2.0
"""Pipeline parallelism on two CPU workers: chains, drafted by the last stage."""

import pytest

from tests.engine.conftest import keep_async_scheduling
from tests.engine.generation import CHAIN
from tests.parallel.engines import Prompts, Run, engine, run


@pytest.mark.engine
def test_tokens_are_those_of_plain_vllm(prompts: Prompts, plain: Run) -> None:
    options = dict(pipeline_parallel_size=2, async_scheduling=True, speculative_config=CHAIN)
    with keep_async_scheduling(), engine(**options) as llm:
        chains = run(llm, prompts)
    assert (chains.greedy, chains.seeded) == (plain.greedy, plain.seeded)
    assert chains.accepted > 0.4
