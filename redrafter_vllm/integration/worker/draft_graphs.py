# SPDX-License-Identifier: Apache-2.0
"""CUDA graphs of drafting rounds, one for each batch size that vLLM captures and some numbers of beam steps."""

from collections.abc import Callable, Sequence

import torch
from vllm.config import VllmConfig
from vllm.config.compilation import CUDAGraphMode
from vllm.v1.worker.gpu.cudagraph_utils import BatchExecutionDescriptor, CudaGraphManager


class DraftGraphs(CudaGraphManager):
    """vLLM's graph manager, in which a request of a round counts as one token.

    It provides the sizes (`cudagraph_capture_sizes` up to `max_num_seqs`), the choice of the next larger one, the
    memory pool shared with the target's graphs, and lets vLLM measure and drop what it has recorded. A round has no
    attention: unless graphs are switched off it is recorded as one graph, whatever the target's attention supports.

    Rounds of fewer beam steps have managers of their own, with the same sizes, one for each number: this one's are
    whole rounds, and it owns those of the `shorter` ones.
    """

    def __init__(
        self,
        vllm_config: VllmConfig,
        device: torch.device,
        cudagraph_mode: CUDAGraphMode,
        shorter: Sequence[int] = (),
    ) -> None:
        self.shorter = {steps: DraftGraphs(vllm_config, device, cudagraph_mode) for steps in shorter}
        self._stream: torch.cuda.Stream | None = None
        wanted = cudagraph_mode != CUDAGraphMode.NONE
        mode = CUDAGraphMode.FULL_DECODE_ONLY if wanted else CUDAGraphMode.NONE
        super().__init__(vllm_config, device, mode, decode_query_len=1)

    def record(self, run_round: Callable[[int, int | None], None], beam_steps: int | None = None) -> None:
        """Record `run_round(size, beam_steps)` for every size, the largest first, and every number of beam steps.

        Each runs once before, to compile kernels. None stands for the beam steps of a whole round.
        """
        if self.device.type == "cuda":
            self._stream = self._stream or torch.cuda.Stream(self.device)

        def create_forward_fn(desc: BatchExecutionDescriptor, warmup: bool) -> Callable[[CUDAGraphMode], None]:
            return lambda cg_mode: run_round(desc.num_tokens, beam_steps)

        of_steps = "" if beam_steps is None else f" of {beam_steps} beam steps"
        self.capture(create_forward_fn, f"Capturing drafting rounds{of_steps}")
        for steps, graphs in self.shorter.items():
            graphs._stream = self._stream
            graphs.record(run_round, steps)

    def _capture_stream(self, desc: BatchExecutionDescriptor) -> torch.cuda.Stream | None:
        """One for rounds of all lengths: graphs share memory of the pool only if one stream has recorded them."""
        return self._stream

    def release_graphs(self) -> None:
        """Drop what was recorded, as vLLM does before it records again."""
        super().release_graphs()
        for graphs in self.shorter.values():
            graphs.release_graphs()

    def of(self, num_reqs: int) -> BatchExecutionDescriptor | None:
        """The smallest recorded round that holds `num_reqs` requests, of any number of beam steps, or None."""
        desc = self.dispatch(num_reqs, num_reqs, uniform_token_count=1, num_active_loras=0)
        return desc if desc.cg_mode == CUDAGraphMode.FULL else None

    def replay(self, desc: BatchExecutionDescriptor, beam_steps: int | None = None) -> None:
        """Draw the round of that size, and of `beam_steps` if such rounds were recorded; a whole one otherwise."""
        self.shorter.get(-1 if beam_steps is None else beam_steps, self).run_fullgraph(desc)
