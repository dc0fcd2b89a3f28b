# SPDX-License-Identifier: Apache-2.0
"""Names by which vLLM's model runner builds what drafts and adapts; worker and runner are classes of ours."""

from collections.abc import Callable
from typing import Any

from vllm.distributed.parallel_state import get_pp_group

from redrafter_vllm.integration.attention.select import register_tree_attention
from redrafter_vllm.integration.method import uses_redrafter
from redrafter_vllm.integration.patches.rebind import rebind_listed
from redrafter_vllm.integration.start_errors import report_start_errors
from redrafter_vllm.integration.target_support import check_pipeline


def install() -> None:
    """The runner imports them by name."""
    runner = "vllm.v1.worker.gpu.model_runner"
    # It knows a closed list. Can go when a method can name its speculator.
    rebind_listed(f"{runner}:init_speculator", _init_speculator)
    # vLLM's manager is for chains and never pauses drafting; ours derives from it. Can go when a speculator names one.
    rebind_listed(f"{runner}:maybe_create_adaptive_verification_manager", _maybe_create_manager)


def _init_speculator(original: Callable) -> Callable:
    @report_start_errors
    def init_speculator(vllm_config: Any, device: Any, req_states: Any) -> Any:
        if not uses_redrafter(vllm_config):
            return original(vllm_config, device, req_states)
        # Imported where an engine builds it: the front end does not need it.
        from redrafter_vllm.integration.worker.speculator import RedrafterSpeculator

        check_pipeline(
            vllm_config.parallel_config.pipeline_parallel_size, vllm_config.scheduler_config.async_scheduling
        )
        if not vllm_config.speculative_config.drafting.is_chain:
            register_tree_attention()
        return RedrafterSpeculator(vllm_config, device)

    return init_speculator


def _maybe_create_manager(original: Callable) -> Callable:
    @report_start_errors
    def maybe_create_adaptive_verification_manager(*, vllm_config: Any, **parts: Any) -> Any:
        if not uses_redrafter(vllm_config):
            return original(vllm_config=vllm_config, **parts)
        from redrafter_vllm.integration.worker import gpu_adaptive_trees

        # Stages of a pipeline before the last one have no trees.
        if gpu_adaptive_trees.runs_on_host(parts["req_states"].device) or not get_pp_group().is_last_rank:
            return None
        taken = ("req_states", "query_start_loc", "num_bonus_tokens", "max_total_logits")
        return gpu_adaptive_trees.create_manager(vllm_config, parts["attn_groups"], *(parts[name] for name in taken))

    return maybe_create_adaptive_verification_manager
