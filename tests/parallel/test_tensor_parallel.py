# SPDX-License-Identifier: Apache-2.0
"""Tensor parallelism on two CPU workers of the multiprocessing executor."""

import pytest

from tests.engine.generation import TREE
from tests.parallel.engines import Prompts, Run, engine, run


@pytest.mark.engine
def test_tokens_are_those_of_plain_vllm_and_drafts_those_of_one_worker(
    prompts: Prompts, trees_on_one_worker: Run
) -> None:
    """Sums over two ranks round otherwise than one rank's, so plain vLLM runs on two ranks as well."""
    with engine(tensor_parallel_size=2, distributed_executor_backend="mp") as llm:
        expected = run(llm, prompts)
    with engine(tensor_parallel_size=2, distributed_executor_backend="mp", speculative_config=TREE) as llm:
        trees = run(llm, prompts)
    assert (trees.greedy, trees.seeded) == (expected.greedy, expected.seeded)
    assert trees.accepted == pytest.approx(trees_on_one_worker.accepted, rel=0.02)
    assert trees_on_one_worker.accepted > 0.5
