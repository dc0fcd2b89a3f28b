# SPDX-License-Identifier: Apache-2.0
"""Names of vLLM's scheduler: draft slots of requests, sessions whose prompt comes in parts, statistics of drafting."""

from collections.abc import Callable

from redrafter_vllm.integration.patches.rebind import rebind_listed
from redrafter_vllm.integration.scheduler import draft_limits, draft_statistics, sessions

_SCHEDULER = "vllm.v1.core.sched.scheduler:Scheduler"


def install() -> None:
    # Every request gets as many draft slots as the engine has. Can go when a request can ask for fewer.
    rebind_listed(f"{_SCHEDULER}.update_draft_token_ids", draft_limits.limit_after_drafting)
    rebind_listed(
        "vllm.v1.core.sched.async_scheduler:AsyncScheduler._update_after_schedule", draft_limits.limit_placeholders
    )
    # A session goes on where plain vLLM would, however many tokens were accepted behind a stop. Can go when vLLM 0.32
    # is gone: 0.33 cuts by the number of tokens, and queues such a session once.
    rebind_listed(f"{_SCHEDULER}._update_request_with_output", sessions.settle_computed)
    rebind_listed(f"{_SCHEDULER}._update_request_as_session", sessions.cut_by_tokens)
    rebind_listed(f"{_SCHEDULER}._handle_stopped_request", sessions.remember_preempted)
    # Statistics can go when a speculator can pass its own to the scheduler, and these reach the stat loggers.
    rebind_listed(f"{_SCHEDULER}.make_spec_decoding_stats", draft_statistics.count_slots)
    rebind_listed(f"{_SCHEDULER}.update_from_output", _update_from_output)


def _update_from_output(original: Callable) -> Callable:
    return sessions.queue_preempted(draft_statistics.read_report(original))
