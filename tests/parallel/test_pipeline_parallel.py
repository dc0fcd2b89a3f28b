# SPDX-License-Identifier: Apache-2.0
"""Pipeline parallelism on two CPU workers: chains, drafted by the last stage."""

from pathlib import Path

import pytest

from tests.engine.conftest import keep_async_scheduling
from tests.engine.generation import CHAIN
from tests.engine.new_weights import save_drafter_like
from tests.parallel.engines import ASSET, Prompts, Run, engine, run


@pytest.mark.engine
def test_tokens_are_those_of_plain_vllm(prompts: Prompts, plain: Run, tmp_path: Path) -> None:
    """Also with another drafter, after a refused one, and after loading the target's weights again.

    The product with the embedding, which the first stage has, is computed again each time.
    """
    untrained = save_drafter_like(ASSET / "redrafter", tmp_path / "untrained")
    spec = {**CHAIN, "project_embedding": True}
    options = dict(pipeline_parallel_size=2, async_scheduling=True, speculative_config=spec)
    with keep_async_scheduling(), engine(**options) as llm:
        chains = run(llm, prompts)
        llm.collective_rpc("reload_drafter", args=(str(untrained),))
        with pytest.raises(Exception, match="is not a directory"):
            llm.collective_rpc("reload_drafter", args=(str(tmp_path / "nothing"),))
        blind = run(llm, prompts)
        llm.collective_rpc("reload_drafter", args=(str(ASSET / "redrafter"),))
        llm.collective_rpc("reload_weights")
        again = run(llm, prompts)
    assert {(str(one.greedy), str(one.seeded)) for one in (chains, blind, again)} == {
        (str(plain.greedy), str(plain.seeded))
    }
    assert chains.accepted == again.accepted > 0.4
    assert blind.accepted < 0.1
