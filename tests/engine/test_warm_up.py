# SPDX-License-Identifier: Apache-2.0
"""vLLM's warm-up with artificial steps of all kinds, which runs on a GPU before graphs are captured."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from tests.engine.conftest import MakeEngine
from tests.engine.generation import CHAIN, TREE, cpu_only, generate, params, random_prompts, runner, tokens, worker
from tests.engine.scripted import run_both
from tests.engine.simulated_graphs import captures_run_again
from tests.engine.test_kernel_attention import SHAPE, requests
from tests.models import VOCAB


def warm_up(llm: Any) -> None:
    from vllm.v1.worker.gpu.warmup import warmup_kernels

    with patch.object(torch.accelerator, "synchronize"):
        warmup_kernels(runner(llm), worker(llm).execute_model, worker(llm).sample_tokens)


@pytest.mark.parametrize("speculative", [TREE, CHAIN], ids=["tree", "chain"])
def test_warm_up(make_engine: MakeEngine, random_target: Path, speculative: dict[str, Any]) -> None:
    """Prefills with a grammar, then decodes with and without drafts and mixed, with every feature of the sampler."""
    prompts, sampling = random_prompts(3, VOCAB), params(temperature=0.0, ignore_eos=True, max_tokens=12)
    expected = tokens(generate(make_engine(random_target), prompts, sampling))
    llm = make_engine(random_target, speculative, seed=1)  # fresh, as vLLM starts it
    speculator = runner(llm).speculator
    seen: list[int] = []
    propose = speculator.propose

    def remember(batch: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        seen.append(batch.num_reqs)
        return propose(batch, *args, **kwargs)

    with patch.object(speculator, "propose", remember):
        warm_up(llm)
    llm.reset_prefix_cache()  # its requests used blocks without allocating them
    assert len(seen) >= 5 and max(seen) > 1
    assert tokens(generate(llm, prompts, sampling)) == expected


@contextmanager
def a_gpu_that_starts(llm: Any, batch_sizes: list[int]) -> Iterator[None]:
    """Start the engine of a CPU again with vLLM's GPU worker, with graphs for decodes of these sizes."""
    from vllm.config.compilation import CUDAGraphMode
    from vllm.platforms import current_platform
    from vllm.v1.worker import gpu_worker
    from vllm.v1.worker.gpu import model_runner

    own, platform = runner(llm), type(current_platform)
    # As vLLM chooses them: numbers of tokens, and those of whole decodes.
    sizes = [*batch_sizes, *(own.decode_query_len * size for size in batch_sizes)]
    graphs = dict(
        cudagraph_mode=CUDAGraphMode.FULL_DECODE_ONLY,
        cudagraph_capture_sizes=sizes,
        max_cudagraph_capture_size=max(sizes),
    )
    with (
        patch.multiple(own.compilation_config, **graphs),
        patch.object(own.model_config, "enforce_eager", False),
        patch.object(torch.accelerator, "synchronize"),
        patch.object(torch.accelerator, "empty_cache"),
        patch.object(torch.accelerator, "get_memory_info", side_effect=((2**40 - n, 2**40) for n in count())),
        patch.object(platform, "graph_pool_handle", return_value=(1, 1), create=True),
        # For other models; and a CPU has no workspace.
        patch.object(gpu_worker, "kernel_warmup"),
        patch.object(model_runner, "lock_workspace"),
        captures_run_again(),
    ):
        yield


@cpu_only
@pytest.mark.parametrize("backend", ["flash"], indirect=True)
def test_the_whole_start_of_a_gpu_worker(make_engine: MakeEngine, random_target: Path, backend: type[Any]) -> None:
    """Memory is measured by a run and by captures with a temporary cache; then cache, warm-up and captures."""
    from vllm.v1.worker.gpu_worker import Worker

    plain = make_engine(random_target, **SHAPE)
    llm = make_engine(random_target, TREE, block_size=32, **SHAPE, seed=1)
    own = runner(llm)
    kv_cache_config = own.kv_cache_config
    with a_gpu_that_starts(llm, [1, 2]):
        own.profile_run()
        assert own.profile_cudagraph_memory() > 0
        assert own.speculator.graphs is None
        worker(llm).initialize_from_config(kv_cache_config)
        timer_of_warm_up = own.speculator.timer
        Worker.compile_or_warm_up_model(worker(llm))
        assert own.cudagraph_manager.graphs and own.speculator.graphs.graphs
        assert own.speculator.timer is not timer_of_warm_up
        prompts, sampling = requests(40, 4)
        sampling[1].max_tokens += 8
        expected, outputs = run_both(plain, llm, prompts, sampling)
    assert tokens(outputs) == tokens(expected)
