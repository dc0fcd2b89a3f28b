# SPDX-License-Identifier: Apache-2.0
"""Streaming-input sessions: a request that goes on with another part of its prompt after each of its answers.

Plain vLLM keeps all tokens of an answer but the last, which was sampled and never computed. The scheduler of 0.32 cuts
at the number of computed tokens, which differs from that in two cases: a step that verified drafts behind the stop, and
a preemption before the stop arrived. 0.33 cuts as this module does, which then changes nothing.
"""

from typing import Any

from vllm.logger import init_logger
from vllm.v1.core.sched.scheduler import Scheduler

logger = init_logger(f"vllm.{__name__}")


class Sessions(Scheduler):
    """vLLM's scheduler, in which a session goes on where it would without drafts."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._preempted_sessions: list[Any] = []

    def _update_request_with_output(self, request: Any, new_token_ids: list[int], *args: Any, **kwargs: Any) -> Any:
        """An answer is cut at its stop.

        Tokens that were accepted behind the stop do not count as computed, and the blocks that the kept tokens fill
        are cached: in plain vLLM that happens when the last token is scheduled. A request that goes on needs neither:
        all its tokens are kept, and its blocks are cached when its next step is scheduled.
        """
        # With steps in flight (asynchronous scheduling) vLLM itself corrects the count, by placeholders.
        in_flight = request.num_output_placeholders or request.num_in_flight_tokens
        kept, stopped = super()._update_request_with_output(request, new_token_ids, *args, **kwargs)
        if stopped and not in_flight:
            request.num_computed_tokens = min(request.num_computed_tokens, request.num_tokens - 1)
            self.kv_cache_manager.cache_blocks(request, request.num_computed_tokens)
        return kept, stopped

    def _update_request_as_session(self, session: Any, update: Any) -> None:
        """Cut before the last token, whatever the number of computed tokens.

        A preempted session has no computed tokens, and would lose its whole text. A part that does not fit is cut: its
        text would be written over that of the request in the next row. The front end has refused it where it could.
        """
        if session.use_structured_output and update.sampling_params.structured_outputs is None:
            # vLLM keeps the grammar of a session's first part; these parameters show the worker that it needs a chain.
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
        super()._update_request_as_session(session, update)
        # At least one token must be computed: in a session without room, the last one that it has kept.
        session.num_computed_tokens = min(num_computed, num_kept, session.num_tokens - 1)

    def _handle_stopped_request(self, request: Any) -> bool:
        """Remember a session that was preempted before its stop arrived."""
        finished = super()._handle_stopped_request(request)
        if not finished and request.num_computed_tokens == 0:
            self._preempted_sessions.append(request)
        return finished

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        """Queue such sessions again.

        vLLM 0.32 takes every stopped request off the queue that it was preempted to, after a session that goes on has
        been queued: it then is in no queue.
        """
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        preempted, self._preempted_sessions = self._preempted_sessions, []
        for request in preempted:
            alive = self.requests.get(request.request_id) is request and not request.is_finished()
            if alive and request not in self.waiting and request not in self.kv_holding_waiting:
                self._enqueue_waiting_request(request)
        return outputs
