# SPDX-License-Identifier: Apache-2.0
"""Names of vLLM's workers and their model runner."""

from collections.abc import Callable
from typing import Any

import numpy as np
from vllm.distributed.parallel_state import get_pp_group
from vllm.platforms import current_platform

from redrafter_vllm.integration.attention.select import register_tree_attention
from redrafter_vllm.integration.method import uses_redrafter
from redrafter_vllm.integration.patches.rebind import add_method, rebind_listed
from redrafter_vllm.integration.start_errors import report_start_errors
from redrafter_vllm.integration.target_support import check_pipeline
from redrafter_vllm.integration.worker import new_weights
from redrafter_vllm.integration.worker.parallel import send_embedding

_RUNNER = "vllm.v1.worker.gpu.model_runner"
_LORA_MIXIN = "vllm.v1.worker.lora_model_runner_mixin:LoRAModelRunnerMixin"
_WORKER = "vllm.v1.worker.gpu_worker:Worker"


def install() -> None:
    # The runner imports these two by name. Can go when a method can name its speculator and model state.
    rebind_listed(f"{_RUNNER}:init_speculator", _init_speculator)
    rebind_listed(f"{_RUNNER}:init_model_state", _init_model_state)
    # A waiting request of one token is padded with placeholder drafts, and vLLM scores them as its prompt. No step of a
    # plain engine has drafts. Can go when vLLM leaves them out.
    rebind_listed(
        "vllm.v1.worker.gpu.sample.prompt_logprob:PromptLogprobsWorker.compute_prompt_logprobs", _prompt_logprobs
    )
    # Runner V2 names one adapter per request for the LM head, which has a row for every draft as well. Can go when it
    # counts those.
    rebind_listed(f"{_LORA_MIXIN}._set_active_loras", _set_active_loras)
    if current_platform.is_cpu():
        # The runner's place for vLLM's manager is filled when the cache exists and nothing has been served. Can go when
        # vLLM builds the manager of a speculator's choice.
        rebind_listed("vllm.v1.worker.cpu_worker:CPUWorker.compile_or_warm_up_model", _compile_or_warm_up_model)
    _install_new_weights()


def _install_new_weights() -> None:
    """A draft model that vLLM's workers know, and a method of theirs that replaces the drafter."""
    # All but the last can go when any speculator can name its draft model, and is called after new weights.
    rebind_listed(f"{_RUNNER}:GPUModelRunner.get_draft_model", new_weights.give_draft_model)
    # vLLM calls this wherever the target has got new weights, for what was computed from the old ones.
    rebind_listed(f"{_LORA_MIXIN}.reset_lora_state", new_weights.follow_target)
    # vLLM loads an update of a draft model as it arrives; ours is checked as a whole.
    rebind_listed(f"{_WORKER}.start_draft_weight_update", new_weights.begin_update)
    rebind_listed(f"{_WORKER}.finish_weight_update", new_weights.finish_update)
    add_method(_WORKER, new_weights.reload_drafter)


# The speculator and the model state are imported where an engine builds them: the front end does not need them.


def _init_speculator(original: Callable) -> Callable:
    @report_start_errors
    def init_speculator(vllm_config: Any, device: Any, req_states: Any) -> Any:
        if not uses_redrafter(vllm_config):
            return original(vllm_config, device, req_states)
        from redrafter_vllm.integration.worker.speculator import RedrafterSpeculator

        check_pipeline(
            vllm_config.parallel_config.pipeline_parallel_size, vllm_config.scheduler_config.async_scheduling
        )

        if not vllm_config.speculative_config.drafting.is_chain:
            register_tree_attention()
        return RedrafterSpeculator(vllm_config, device)

    return init_speculator


def _init_model_state(original: Callable) -> Callable:
    @report_start_errors
    def init_model_state(vllm_config: Any, model: Any, encoder_cache: Any, device: Any) -> Any:
        if not uses_redrafter(vllm_config):
            return original(vllm_config, model, encoder_cache, device)
        if not get_pp_group().is_last_rank:
            # Pipelines draft only chains, for which a stage that samples nothing has nothing to do.
            send_embedding(model)
            return original(vllm_config, model, encoder_cache, device)
        from redrafter_vllm.integration.worker.model_state import RedrafterModelState

        return RedrafterModelState(vllm_config, model, encoder_cache, device)

    return init_model_state


def _compile_or_warm_up_model(original: Callable) -> Callable:
    @report_start_errors
    def compile_or_warm_up_model(self: Any) -> Any:
        if uses_redrafter(self.vllm_config):
            from redrafter_vllm.integration.worker.adaptive_trees import adapt_trees

            adapt_trees(self.model_runner)
        return original(self)  # which sets the seeds at its end

    return compile_or_warm_up_model


def _prompt_logprobs(original: Callable) -> Callable:
    def compute_prompt_logprobs(
        self: Any, logits_fn: Any, hidden_states: Any, input_batch: Any, *args: Any
    ) -> dict[str, Any]:
        found = original(self, logits_fn, hidden_states, input_batch, *args)
        if not found:
            return found
        num_drafts = np.diff(input_batch.cu_num_logits_np) - 1
        for req_id, count in zip(input_batch.req_ids, num_drafts.tolist(), strict=True):
            if count and req_id in found:
                scores = found.pop(req_id)
                if scores.logprobs.shape[0] > count:
                    found[req_id] = type(scores)(*(rows[:-count] for rows in scores[:3]))
        return found

    return compute_prompt_logprobs


def _set_active_loras(original: Callable) -> Callable:
    def _set_active_loras(self: Any, prompt_lora_mapping: tuple[int, ...], *args: Any, **kwargs: Any) -> None:
        # Profiling sets adapters before there is a model state.
        state = getattr(self, "model_state", None)
        if state is not None and hasattr(state, "per_logits_row"):
            prompt_lora_mapping = state.per_logits_row(prompt_lora_mapping)
        original(self, prompt_lora_mapping, *args, **kwargs)

    return _set_active_loras
