# SPDX-License-Identifier: Apache-2.0
"""The scheduler of an engine that drafts with ReDrafter: vLLM's own, derived, by its option `scheduler_cls`."""

from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler

from redrafter_vllm.integration.scheduler.draft_limits import DraftLimits
from redrafter_vllm.integration.scheduler.draft_statistics import DraftStatistics
from redrafter_vllm.integration.scheduler.sessions import Sessions


class RedrafterScheduler(Sessions, DraftStatistics, DraftLimits):
    """vLLM's `Scheduler`, which waits for a step's tokens before it schedules the next step."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Read by vLLM 0.33, which sets it for methods whose drafter has a cache: a step after which no request can use
        # drafts, as in the middle of a prompt or before the last token of all, draws none.
        self.can_skip_drafts = True


class RedrafterAsyncScheduler(RedrafterScheduler, AsyncScheduler):
    """vLLM's `AsyncScheduler`, which schedules a step while the one before still runs."""

    def _update_after_schedule(self, scheduler_output: Any) -> None:
        """Counts placeholders for drafts that are not drawn yet."""
        super()._update_after_schedule(scheduler_output)
        self.limit_drafts(scheduler_output.num_scheduled_tokens)


def build_scheduler(vllm_config: Any, **parts: Any) -> RedrafterScheduler:
    """What vLLM calls in place of the class: by then it has decided whether to schedule asynchronously."""
    is_async = vllm_config.scheduler_config.async_scheduling
    return (RedrafterAsyncScheduler if is_async else RedrafterScheduler)(vllm_config=vllm_config, **parts)
