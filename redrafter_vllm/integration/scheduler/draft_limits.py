# SPDX-License-Identifier: Apache-2.0
"""Requests that want fewer draft tokens, or none: the scheduler gives them no more draft slots than they want."""

from collections.abc import Iterable
from typing import Any

from vllm.v1.core.sched.scheduler import Scheduler

from redrafter_vllm.request_settings import KEY, parse_request_settings


class DraftLimits(Scheduler):
    """vLLM's scheduler, in which every request gets N draft slots, and no more than its own settings allow."""

    def update_draft_token_ids(self, draft_token_ids: Any) -> None:
        """Without asynchronous scheduling, requests get their drafts here."""
        super().update_draft_token_ids(draft_token_ids)
        self.limit_drafts(draft_token_ids.req_ids)

    def limit_drafts(self, request_ids: Iterable[str]) -> None:
        """Take away the draft slots that a request does not want."""
        drafting = self.vllm_config.speculative_config.drafting
        for request_id in request_ids:
            request = self.requests.get(request_id)
            params = None if request is None else request.sampling_params
            if params is None or KEY not in (params.extra_args or ()):
                continue
            limit = parse_request_settings(params.extra_args, drafting).node_limit(drafting)
            if len(request.spec_token_ids) > limit:
                # The list of placeholders is shared between requests.
                request.spec_token_ids = request.spec_token_ids[:limit]
