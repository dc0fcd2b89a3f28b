# SPDX-License-Identifier: Apache-2.0
"""The model runner of an engine that drafts with ReDrafter: vLLM's own, derived."""

from typing import Any

from torch import nn
from vllm.v1.worker.cpu.model_runner import CPUModelRunner
from vllm.v1.worker.gpu.async_utils import AsyncOutput
from vllm.v1.worker.gpu.model_runner import GPUModelRunner

from redrafter_vllm.integration.worker.gpu_adaptive_trees import create_manager
from redrafter_vllm.integration.worker.model_state import RedrafterModelState
from redrafter_vllm.integration.worker.parallel import send_embedding
from redrafter_vllm.integration.worker.prompt_logprobs import DraftlessPromptLogprobs
from redrafter_vllm.integration.worker.report import attach_report


class RedrafterRunner(GPUModelRunner):
    """vLLM's Model Runner V2. A stage of a pipeline that does not draft has no speculator."""

    prompt_logprobs_worker: Any
    _adaptive_manager: Any = None
    _groups_of_manager: Any = None  # the attention groups for which it was made

    @property
    def model(self) -> Any:
        """The target."""
        return self._target

    @model.setter
    def model(self, target: Any) -> None:
        self._target = target
        if self.is_last_pp_rank:
            # What vLLM asks a model for when it builds the model state. On the object: other engines of the process
            # may have models of this class.
            target.get_model_state_cls = lambda: RedrafterModelState

    @model.deleter
    def model(self) -> None:
        del self._target

    @property
    def adaptive_verification(self) -> Any:
        """What chooses the drafts that a step verifies; None verifies all of them."""
        return self._adaptive_manager

    @adaptive_verification.setter
    def adaptive_verification(self, manager: Any) -> None:
        # vLLM sets this once it has made attention groups, to None as our speculator has no
        # `enable_adaptive_verification`. What is set later, by the warm-up to None and back, is left as it is.
        groups = getattr(self, "attn_groups", None)
        if groups is not self._groups_of_manager:
            self._groups_of_manager = groups
            manager = create_manager(self)
        self._adaptive_manager = manager

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        super().load_model(*args, **kwargs)
        if self.prompt_logprobs_worker is not None:
            self.prompt_logprobs_worker = DraftlessPromptLogprobs(
                self.max_num_reqs, self.device, logprobs_mode=self.model_config.logprobs_mode
            )
        if not self.is_last_pp_rank:
            send_embedding(self.model)

    def get_draft_model(self) -> nn.Module | None:
        """What sleep and weight updates call; vLLM's own returns only models of a `DraftModelSpeculator`."""
        return None if self.speculator is None else self.speculator.draft_model

    def reset_lora_state(self) -> None:
        """Called whenever the target has got new weights: computes again what was computed from the old ones."""
        super().reset_lora_state()
        if self.speculator is None:
            send_embedding(self.model)
        else:
            self.speculator.follow_target()

    def _set_active_loras(self, prompt_lora_mapping: tuple[int, ...], *args: Any, **kwargs: Any) -> None:
        """Name an adapter for every row of logits; vLLM's own names one for each request, which may have several."""
        # Profiling sets adapters before there is a model state.
        state = getattr(self, "model_state", None)
        if isinstance(state, RedrafterModelState):
            prompt_lora_mapping = state.per_logits_row(prompt_lora_mapping)
        super()._set_active_loras(prompt_lora_mapping, *args, **kwargs)

    def sample_tokens(self, grammar_output: Any) -> Any:
        """Let the scheduler know of the step's trees."""
        output = super().sample_tokens(grammar_output)
        if isinstance(output, AsyncOutput) and self.speculator is not None:
            attach_report(output, self.speculator)
        return output


class RedrafterCpuRunner(RedrafterRunner, CPUModelRunner):
    """The same on a CPU."""
