# SPDX-License-Identifier: Apache-2.0
"""Tensor parallelism on two CPU workers of the multiprocessing executor."""

from pathlib import Path

import pytest

from tests.engine.generation import TREE
from tests.engine.new_weights import save_drafter_like
from tests.parallel.engines import ASSET, Prompts, Run, engine, run


@pytest.mark.engine
def test_tokens_are_those_of_plain_vllm_and_drafts_those_of_one_worker(
    prompts: Prompts, trees_on_one_worker: Run, tmp_path: Path
) -> None:
    """Sums over two ranks round differently than on one, so plain vLLM runs on two ranks as well.

    Then the ranks take another drafter, refuse one together, and get the target's weights again.
    """
    served = ASSET / "redrafter"
    untrained = save_drafter_like(served, tmp_path / "untrained")
    wrong = save_drafter_like(served, tmp_path / "wrong", num_draft_layers=3)
    with engine(tensor_parallel_size=2, distributed_executor_backend="mp") as llm:
        expected = run(llm, prompts)
    with engine(tensor_parallel_size=2, distributed_executor_backend="mp", speculative_config=TREE) as llm:
        trees = run(llm, prompts)
        llm.collective_rpc("reload_drafter", args=(str(untrained),))
        with pytest.raises(Exception, match="num_draft_layers 3 instead of 2"):
            llm.collective_rpc("reload_drafter", args=(str(wrong),))
        blind = run(llm, prompts)
        llm.collective_rpc("reload_drafter", args=(str(served),))
        llm.collective_rpc("reload_weights")
        again = run(llm, prompts)
    assert (blind.greedy, blind.seeded) == (again.greedy, again.seeded) == (expected.greedy, expected.seeded)
    assert blind.accepted < 0.1
    assert again.accepted == trees.accepted
    assert (trees.greedy, trees.seeded) == (expected.greedy, expected.seeded)
    assert trees.accepted == pytest.approx(trees_on_one_worker.accepted, rel=0.02)
    assert trees_on_one_worker.accepted > 0.5
