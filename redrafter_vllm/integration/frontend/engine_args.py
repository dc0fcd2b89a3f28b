# SPDX-License-Identifier: Apache-2.0
"""The engine's other arguments: those that do not go with ReDrafter, and those that bring its classes into vLLM."""

from typing import Any

from vllm.platforms import current_platform
from vllm.v1.attention.backends.registry import AttentionBackendEnum

from redrafter_vllm.integration.attention.select import register_tree_attention
from redrafter_vllm.integration.target_support import UnsupportedTargetError, check_step_limits, check_transfer

# vLLM imports these by name in the processes that need them.
SCHEDULER = "redrafter_vllm.integration.scheduler.redrafter_scheduler.build_scheduler"
GPU_WORKER = "redrafter_vllm.integration.worker.gpu.RedrafterWorker"
CPU_WORKER = "redrafter_vllm.integration.worker.cpu.RedrafterCpuWorker"


def check_engine_args(engine_args: Any, config: Any) -> None:
    """Refuse arguments with which vLLM would fail later, or emit other tokens than without drafts.

    Raises:
        UnsupportedTargetError: A KV connector with trees, or a limit on a step's tokens that is too small.
    """
    has_connector = engine_args.kv_transfer_config is not None or engine_args.kv_offloading_size is not None
    check_transfer(has_connector, config.drafting)
    # With a schedule of budgets the scheduler pads nothing.
    if not config.num_speculative_tokens_per_batch_size:
        names = "max_num_batched_tokens", "max_num_scheduled_tokens", "long_prefill_token_threshold"
        limits = {name: getattr(engine_args, name) for name in names}
        check_step_limits(limits, config.num_speculative_tokens)


def select_tree_attention(engine_args: Any) -> None:
    """Make the engine's attention backend ours.

    Raises:
        UnsupportedTargetError: The user has chosen another backend, which has no tree attention.
    """
    chosen = engine_args.attention_backend or engine_args.attention_config.backend
    if chosen not in (None, "CUSTOM", AttentionBackendEnum.CUSTOM):
        name = getattr(chosen, "name", chosen)
        raise UnsupportedTargetError(
            f"ReDrafter's trees need their own attention backend, but {name} was chosen; leave the attention backend "
            "unset, or draft chains (beam_width=1)."
        )
    register_tree_attention()
    if engine_args.attention_config.backend is None:
        engine_args.attention_backend = AttentionBackendEnum.CUSTOM


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
