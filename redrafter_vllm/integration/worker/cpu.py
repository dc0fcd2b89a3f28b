# SPDX-License-Identifier: Apache-2.0
"""The worker on a CPU."""

from typing import Any

from vllm.utils.torch_utils import set_random_seed
from vllm.v1.worker.cpu_worker import CPUWorker

from redrafter_vllm.integration.start_errors import report_start_errors
from redrafter_vllm.integration.worker.gpu import RedrafterWorker
from redrafter_vllm.utils.huge_pages import move_heap


class RedrafterCpuWorker(RedrafterWorker, CPUWorker):
    """vLLM's worker for CPUs."""

    def init_device(self) -> None:
        """Builds the runner.

        vLLM's worker for CPUs, unlike the one for GPUs, has no method that builds only the runner. So the runner
        becomes one of ours when it exists, which is before it has loaded anything but the drafter.
        """
        super().init_device()
        if not self.use_v2_model_runner:
            return
        # Imported when vLLM has replaced functions that the runner's modules bind by name.
        from redrafter_vllm.integration.worker.runner import RedrafterCpuRunner

        self.model_runner.__class__ = RedrafterCpuRunner

    @report_start_errors
    def compile_or_warm_up_model(self) -> Any:
        """Called when the cache exists and nothing has been served: trees adapt from here on."""
        from redrafter_vllm.integration.worker.adaptive_trees import adapt_trees

        times = super().compile_or_warm_up_model()  # vLLM 0.33 runs artificial requests, from which nothing is learned
        move_heap()
        adapt_trees(self.model_runner)
        # As vLLM's worker does at the end, so that nothing before has an effect.
        set_random_seed(self.model_config.seed, self.parallel_config.data_parallel_index)
        return times
