# SPDX-License-Identifier: Apache-2.0
"""vLLM's full CUDA graphs without CUDA: the captured function runs again, on the tensors of its capture.

Everything else is vLLM's own code: the sizes, the dummy batches, the choice of a graph for a step, its padding.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from vllm.config.compilation import CUDAGraphMode
from vllm.platforms import current_platform
from vllm.v1.worker.gpu.cudagraph_utils import CudaGraphManager, ModelCudaGraphManager

from tests.engine.generation import runner


@contextmanager
def simulated_graphs(llm: Any, batch_sizes: list[int], *, any_lengths: bool = False) -> Iterator[list[tuple[int, int]]]:
    """Give `llm` graphs for decode batches of these sizes, or with `any_lengths` of this many tokens.

    Yields a list with, for each replay, the number of requests of the step and the size of the graph.
    """
    replays: list[tuple[int, int]] = []
    model_runner = runner(llm)
    query_len, options = model_runner.decode_query_len, model_runner.compilation_config
    sizes = batch_sizes if any_lengths else [query_len * size for size in batch_sizes]
    assert max(sizes) <= model_runner.max_num_tokens
    chosen = {"cudagraph_capture_sizes": sizes, "max_cudagraph_capture_size": max(sizes)}
    dispatch = CudaGraphManager.dispatch

    def watch(self: Any, num_reqs: int, *args: Any, **options: Any) -> Any:
        description = dispatch(self, num_reqs, *args, **options)
        if description.cg_mode == CUDAGraphMode.FULL:
            replays.append((num_reqs, description.num_tokens if any_lengths else description.num_reqs))
        return description

    with (
        patch.multiple(options, **chosen),
        captures_run_again(),
        patch.object(CudaGraphManager, "dispatch", watch),
    ):
        manager = ModelCudaGraphManager(
            model_runner.vllm_config,
            model_runner.device,
            CUDAGraphMode.FULL_DECODE_ONLY,
            query_len,
            varlen_decode=any_lengths,
        )
        manager.capture(
            model_runner.model,
            model_runner.model_state,
            model_runner.input_buffers,
            model_runner.intermediate_tensors,
            model_runner.block_tables,
            model_runner.attn_groups,
            model_runner.kv_cache_config,
        )
        with patch.object(model_runner, "cudagraph_manager", manager):
            yield replays


@contextmanager
def captures_run_again() -> Iterator[None]:
    """Functions that vLLM captures within the block run again where the graph would be replayed."""
    with (
        patch.object(type(current_platform), "get_global_graph_pool", lambda self: None),
        patch.object(CudaGraphManager, "capture", _capture),
    ):
        yield


@torch.inference_mode()
def _capture(self: Any, create_forward_fn: Any, progress_bar_desc: str = "") -> None:
    """Like `CudaGraphManager.capture`: warm up, then capture with fresh attention metadata."""
    for description in self._capture_descs[CUDAGraphMode.FULL]:
        create_forward_fn(description, warmup=True)(CUDAGraphMode.NONE)
        forward = create_forward_fn(description, warmup=False)
        forward(CUDAGraphMode.NONE)
        self.graphs[description] = SimpleNamespace(replay=lambda forward=forward: forward(CUDAGraphMode.NONE))
    self._graphs_captured = True
