# SPDX-License-Identifier: Apache-2.0
"""Streaming-input sessions: a request that goes on with another part of its prompt after each of its answers.

Plain vLLM keeps all of an answer but its last token, which was sampled and never computed. Its scheduler of 0.32 takes
the number of computed tokens for where to cut, and two things put that number elsewhere: a step that verified drafts
behind the stop, and a preemption before the stop arrived. 0.33 counts as this module does, which then changes nothing.
"""

from collections.abc import Callable
from typing import Any

from vllm.exceptions import VLLMValidationError
from vllm.logger import init_logger

logger = init_logger(f"vllm.{__name__}")


def settle_computed(original: Callable) -> Callable:
    """Wrap `Scheduler._update_request_with_output`, where an answer is cut at its stop.

    Whatever has been accepted behind the stop is no longer computed, and the blocks that the kept tokens fill can be
    cached at once: in plain vLLM they are when the last token is scheduled.
    """

    def _update_request_with_output(self: Any, request: Any, new_token_ids: list[int], *args: Any, **kw: Any) -> Any:
        kept, stopped = original(self, request, new_token_ids, *args, **kw)
        # With steps in flight (asynchronous scheduling) vLLM itself keeps the count, by placeholders.
        if _is_ours(self) and not (request.num_output_placeholders or request.num_in_flight_tokens):
            request.num_computed_tokens = min(request.num_computed_tokens, request.num_tokens - 1)
            self.kv_cache_manager.cache_blocks(request, request.num_computed_tokens)
        return kept, stopped

    return _update_request_with_output


def cut_by_tokens(original: Callable) -> Callable:
    """Wrap `Scheduler._update_request_as_session`: its cut is before the last token, however much is computed.

    A preempted session has nothing computed, and would lose its whole text. A part that does not fit is cut: its text
    would be written over that of the request in the next row, and the front end has refused it where it could.
    """

    def _update_request_as_session(self: Any, session: Any, update: Any) -> None:
        if not _is_ours(self):
            original(self, session, update)
            return
        if session.use_structured_output and update.sampling_params.structured_outputs is None:
            # vLLM keeps to the grammar of a session's first part, and by this the worker knows who needs a chain.
            update.sampling_params.structured_outputs = session.sampling_params.structured_outputs
        num_computed, num_kept = session.num_computed_tokens, session.num_tokens - 1
        room = self.max_model_len - 1 - num_kept
        if len(update.prompt_token_ids) > room:
            logger.warning(
                "The text of session %s reaches max_model_len=%d: of a part of %d tokens %d are kept.",
                session.request_id,
                self.max_model_len,
                len(update.prompt_token_ids),
                room,
            )
            update.prompt_token_ids = update.prompt_token_ids[:room]
        session.num_computed_tokens = num_kept
        original(self, session, update)
        # One token at least is to be computed, in a session without room the last that it has kept.
        session.num_computed_tokens = min(num_computed, num_kept, session.num_tokens - 1)

    return _update_request_as_session


def refuse_parts(original: Callable) -> Callable:
    """Wrap `AsyncLLM._add_request`: a part that cannot be answered is an error of its client's call alone.

    Raises:
        VLLMValidationError: The session's text outgrows `max_model_len`, of which vLLM looks at each part alone, or the
            part asks for log-probabilities that the session's first did not, which would end vLLM's front end.
    """

    async def _add_request(self: Any, request: Any, *args: Any, **kwargs: Any) -> None:
        state = self.output_processor.request_states.get(request.request_id)
        if state is not None and request.resumable and _is_ours(self):
            state.redrafter_parts = getattr(state, "redrafter_parts", 0) + 1
            if problem := _problem(state, request, self.model_config.max_model_len):
                raise VLLMValidationError(problem)
        await original(self, request, *args, **kwargs)

    return _add_request


def _problem(state: Any, request: Any, max_model_len: int) -> str | None:
    """Why a session cannot go on with this part.

    Its length is exact when the part before has been answered; answers still to come may be longer than counted.
    """
    waiting = sum(len(part.prompt_token_ids) for part in state.input_chunk_queue or ())
    kept = state.detokenizer.num_output_tokens() - state.redrafter_parts  # each answer's last token is forgotten
    length = state.prompt_len + waiting + kept + len(request.prompt_token_ids)
    if length >= max_model_len:
        return (
            f"With its new part the text of this session has {length} tokens, which leaves no room for an answer "
            f"within max_model_len={max_model_len}; begin another session."
        )
    asked, answered = request.sampling_params, state.logprobs_processor
    for what, wanted, held in (
        ("log-probabilities", asked.num_logprobs, answered.num_logprobs),
        ("log-probabilities of the prompt", asked.prompt_logprobs, answered.num_prompt_logprobs),
    ):
        if wanted is not None and held is None:
            return f"A session has {what} only if its first part asks for them; ask there, or begin another session."
    return None


def remember_preempted(original: Callable) -> Callable:
    """Wrap `Scheduler._handle_stopped_request`: a session preempted before its stop arrived is queued by hand."""

    def _handle_stopped_request(self: Any, request: Any) -> bool:
        finished = original(self, request)
        if not finished and request.num_computed_tokens == 0 and _is_ours(self):
            self.redrafter_preempted_sessions = [*getattr(self, "redrafter_preempted_sessions", ()), request]
        return finished

    return _handle_stopped_request


def queue_preempted(original: Callable) -> Callable:
    """Wrap `Scheduler.update_from_output`, which takes every stopped request off the queue that it was preempted to.

    That happens after a session that goes on has been queued again, which then is in no queue.
    """

    def update_from_output(self: Any, scheduler_output: Any, model_runner_output: Any) -> Any:
        outputs = original(self, scheduler_output, model_runner_output)
        for request in self.__dict__.pop("redrafter_preempted_sessions", ()):
            alive = self.requests.get(request.request_id) is request and not request.is_finished()
            if alive and request not in self.waiting and request not in self.kv_holding_waiting:
                self._enqueue_waiting_request(request)
        return outputs

    return update_from_output


def _is_ours(owner: Any) -> bool:
    spec = owner.vllm_config.speculative_config
    return spec is not None and spec.method == "redrafter"
