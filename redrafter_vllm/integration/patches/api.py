# SPDX-License-Identifier: Apache-2.0
"""Names of vLLM through which requests come: the bodies of HTTP requests, sampling parameters, parts of sessions."""

from collections.abc import Callable
from typing import Any

from redrafter_vllm.config import OptionError
from redrafter_vllm.integration.frontend.session_parts import refuse_parts
from redrafter_vllm.integration.method import is_ours
from redrafter_vllm.integration.patches.rebind import rebind_listed
from redrafter_vllm.request_settings import KEY, parse_request_settings


def install() -> None:
    """What a request's own settings and a session's parts need on their way to the engine."""
    # The field `redrafter` of a body. vLLM's own field for extra arguments, `vllm_xargs`, takes these settings as a
    # JSON string without a patch, but no object. Can go when it takes objects.
    openai = "vllm.entrypoints.openai"
    rebind_listed(f"{openai}.chat_completion.protocol:ChatCompletionRequest.to_sampling_params", _to_sampling_params)
    rebind_listed(f"{openai}.completion.protocol:CompletionRequest.to_sampling_params", _to_sampling_params)
    rebind_listed(f"{openai}.responses.protocol:ResponsesRequest.to_sampling_params", _to_sampling_params)
    # vLLM's rejection sampler ignores min_p and logit_bias, so it refuses them; the walk runs its whole sampler.
    # Can go when the refusal asks the method. Also where a request's own settings are checked.
    rebind_listed("vllm.sampling_params:SamplingParams._validate_spec_decode", _validate_spec_decode)
    # Can go when vLLM refuses a part for which its session has no room, and accepts log-probabilities that come late.
    rebind_listed("vllm.v1.engine.async_llm:AsyncLLM._add_request", refuse_parts)


def _to_sampling_params(original: Callable) -> Callable:
    def to_sampling_params(self: Any, *args: Any, **kwargs: Any) -> Any:
        params = original(self, *args, **kwargs)
        settings = (self.model_extra or {}).get(KEY)
        if settings is not None:
            params.extra_args = {**(params.extra_args or {}), KEY: settings}
        return params

    return to_sampling_params


def _validate_spec_decode(original: Callable) -> Callable:
    def _validate_spec_decode(self: Any, speculative_config: Any) -> None:
        if not is_ours(speculative_config):
            original(self, speculative_config)
            return
        # Here and not in the engine: an error becomes that of the call, or the server's status 400.
        from vllm.exceptions import VLLMValidationError

        try:
            parse_request_settings(self.extra_args, speculative_config.drafting)
        except OptionError as error:
            raise VLLMValidationError(str(error), parameter=KEY) from error

    return _validate_spec_decode
