# SPDX-License-Identifier: Apache-2.0
"""CUDA graphs of whole drafting rounds, one for each batch size that vLLM captures."""

from collections.abc import Callable

import torch
from vllm.config import VllmConfig
from vllm.config.compilation import CUDAGraphMode
from vllm.v1.worker.gpu.cudagraph_utils import BatchExecutionDescriptor, CudaGraphManager


class DraftGraphs(CudaGraphManager):
    """vLLM's graph manager, in which a request of a round counts as one token.

    It provides the sizes (`cudagraph_capture_sizes` up to `max_num_seqs`), the choice of the next larger one, the
    memory pool shared with the target's graphs, and lets vLLM measure and drop what it has recorded. A round has no
    attention: unless graphs are switched off it is recorded as one graph, whatever the target's attention supports.
    """

    def __init__(self, vllm_config: VllmConfig, device: torch.device, cudagraph_mode: CUDAGraphMode) -> None:
        wanted = cudagraph_mode != CUDAGraphMode.NONE
        mode = CUDAGraphMode.FULL_DECODE_ONLY if wanted else CUDAGraphMode.NONE
        super().__init__(vllm_config, device, mode, decode_query_len=1)

    def record(self, run_round: Callable[[int], None]) -> None:
        """Record `run_round(size)` for every size, the largest first; each runs once before, to compile kernels."""

        def create_forward_fn(desc: BatchExecutionDescriptor, warmup: bool) -> Callable[[CUDAGraphMode], None]:
            return lambda cg_mode: run_round(desc.num_tokens)

        self.capture(create_forward_fn, "Capturing drafting rounds")

    def of(self, num_reqs: int) -> BatchExecutionDescriptor | None:
        """The smallest recorded round that holds `num_reqs` requests, or None."""
        desc = self.dispatch(num_reqs, num_reqs, uniform_token_count=1, num_active_loras=0)
        return desc if desc.cg_mode == CUDAGraphMode.FULL else None
