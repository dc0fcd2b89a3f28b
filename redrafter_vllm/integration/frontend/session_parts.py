# SPDX-License-Identifier: Apache-2.0
"""Streaming-input sessions in the front end: a part that its session cannot take is an error of the client's call."""

from collections.abc import Callable
from typing import Any

from vllm.exceptions import VLLMValidationError

from redrafter_vllm.integration.method import uses_redrafter


def refuse_parts(original: Callable) -> Callable:
    """Wrap `AsyncLLM._add_request`: a part that cannot be served is an error of this call, and of no other.

    Raises:
        VLLMValidationError: The session's text outgrows `max_model_len`, with which vLLM compares each part alone, or
            the part wants log-probabilities that the session's first part did not, which would end vLLM's front end.
    """

    async def _add_request(self: Any, request: Any, *args: Any, **kwargs: Any) -> None:
        state = self.output_processor.request_states.get(request.request_id)
        if state is not None and request.resumable and uses_redrafter(self.vllm_config):
            state.redrafter_parts = getattr(state, "redrafter_parts", 0) + 1
            if problem := _problem(state, request, self.model_config.max_model_len):
                raise VLLMValidationError(problem)
        await original(self, request, *args, **kwargs)

    return _add_request


def _problem(state: Any, request: Any, max_model_len: int) -> str | None:
    """Why a session cannot go on with this part; None if it can.

    Its length is exact when the part before has been answered; answers still to come may be longer than counted.
    """
    waiting = sum(len(part.prompt_token_ids) for part in state.input_chunk_queue or ())
    kept = state.detokenizer.num_output_tokens() - state.redrafter_parts  # each answer's last token is dropped
    length = state.prompt_len + waiting + kept + len(request.prompt_token_ids)
    if length >= max_model_len:
        return (
            f"With its new part the text of this session has {length} tokens, which leaves no room for an answer "
            f"within max_model_len={max_model_len}; begin another session."
        )
    wanted, first = request.sampling_params, state.logprobs_processor
    for what, wanted_by_part, wanted_by_first in (
        ("log-probabilities", wanted.num_logprobs, first.num_logprobs),
        ("log-probabilities of the prompt", wanted.prompt_logprobs, first.num_prompt_logprobs),
    ):
        if wanted_by_part is not None and wanted_by_first is None:
            return f"A session has {what} only if its first part asks for them; ask there, or begin another session."
    return None
