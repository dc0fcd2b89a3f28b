# SPDX-License-Identifier: Apache-2.0
"""The scheduler and the workers of an engine that drafts: derived from vLLM's, which takes them by name."""

from typing import Any

from vllm.platforms import current_platform

from redrafter_vllm.integration.target_support import UnsupportedTargetError

# vLLM imports these in the processes that need them.
SCHEDULER = "redrafter_vllm.integration.scheduler.redrafter_scheduler.build_scheduler"
GPU_WORKER = "redrafter_vllm.integration.worker.gpu.RedrafterWorker"
CPU_WORKER = "redrafter_vllm.integration.worker.cpu.RedrafterCpuWorker"


def use_own_classes(engine_args: Any, parallel: Any) -> None:
    """Make the engine's scheduler and its workers ours; `parallel` is vLLM's ParallelConfig.

    Raises:
        UnsupportedTargetError: The user has chosen others, or the device is neither a CPU nor one with CUDA or ROCm.
    """
    if not (current_platform.is_cpu() or current_platform.is_cuda_alike()):
        raise UnsupportedTargetError(f"ReDrafter does not run on {current_platform.device_name} devices.")
    worker = CPU_WORKER if current_platform.is_cpu() else GPU_WORKER
    for option, chosen, default, own in (
        ("scheduler_cls", engine_args.scheduler_cls, None, SCHEDULER),
        ("worker_cls", parallel.worker_cls, "auto", worker),
    ):
        if chosen not in (default, own):
            raise UnsupportedTargetError(
                f"ReDrafter derives its scheduler and workers from vLLM's, but {option}={chosen!r} was chosen; leave "
                f"{option} unset."
            )
    engine_args.scheduler_cls, parallel.worker_cls = SCHEDULER, worker
