# SPDX-License-Identifier: Apache-2.0
"""The name by which vLLM's model runner builds what drafts; worker and runner are classes of ours."""

from collections.abc import Callable
from typing import Any

from redrafter_vllm.integration.attention.select import register_tree_attention
from redrafter_vllm.integration.method import uses_redrafter
from redrafter_vllm.integration.patches.rebind import rebind_listed
from redrafter_vllm.integration.start_errors import report_start_errors
from redrafter_vllm.integration.target_support import check_pipeline


def install() -> None:
    """The runner imports it by name, and it knows a closed list. Can go when a method can name its speculator."""
    rebind_listed("vllm.v1.worker.gpu.model_runner:init_speculator", _init_speculator)


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
        return RedrafterSpeculator(vllm_config, device, req_states)

    return init_speculator
