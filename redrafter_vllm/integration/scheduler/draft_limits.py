# SPDX-License-Identifier: Apache-2.0
"""Requests that want fewer draft tokens, or none: the scheduler gives them no more draft slots than they want."""

from collections.abc import Callable, Iterable
from typing import Any

from redrafter_vllm.integration.method import uses_redrafter
from redrafter_vllm.request_settings import KEY, parse_request_settings


def limit_after_drafting(original: Callable) -> Callable:
    """Wrap `Scheduler.update_draft_token_ids`: without asynchronous scheduling, requests get their drafts here."""

    def update_draft_token_ids(self: Any, draft_token_ids: Any) -> None:
        original(self, draft_token_ids)
        _limit(self, draft_token_ids.req_ids)

    return update_draft_token_ids


def limit_placeholders(original: Callable) -> Callable:
    """Wrap `AsyncScheduler._update_after_schedule`, which counts placeholders for drafts that are not drawn yet."""

    def _update_after_schedule(self: Any, scheduler_output: Any) -> None:
        original(self, scheduler_output)
        _limit(self, scheduler_output.num_scheduled_tokens)

    return _update_after_schedule


def _limit(scheduler: Any, request_ids: Iterable[str]) -> None:
    if not uses_redrafter(scheduler.vllm_config):
        return
    drafting = scheduler.vllm_config.speculative_config.drafting
    for request_id in request_ids:
        request = scheduler.requests.get(request_id)
        params = None if request is None else request.sampling_params
        if params is None or KEY not in (params.extra_args or ()):
            continue
        limit = parse_request_settings(params.extra_args, drafting).node_limit(drafting)
        if len(request.spec_token_ids) > limit:
            # The list of placeholders is shared between requests.
            request.spec_token_ids = request.spec_token_ids[:limit]
