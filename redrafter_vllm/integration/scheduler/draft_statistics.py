# SPDX-License-Identifier: Apache-2.0
"""vLLM's statistics of speculative decoding, corrected to count nodes and received tokens, and extended by ours."""

from typing import Any, NamedTuple

from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.metrics.stats import RequestSpecDecodeMetrics
from vllm.v1.spec_decode.metrics import SpecDecodingStats

from redrafter_vllm.adaptive.record import NO_COUNTS, AdaptiveCounts
from redrafter_vllm.drafting.step_timer import NO_TIME, StepTimes
from redrafter_vllm.integration.metrics import DraftReport, StepCounts, count_fewer


class Verification(NamedTuple):
    """One request's verification, as the scheduler has counted it before it looks for a stop."""

    stats: SpecDecodingStats | None  # of the step; None where statistics are off
    of_request: RequestSpecDecodeMetrics | None  # None where the request does not have them
    has_tree: bool  # the scheduler pads a request that joins the batch with slots that nothing was drafted for
    num_emitted: int


class DraftStatistics(Scheduler):
    """vLLM's scheduler, whose statistics count the nodes of trees, and tokens that were received."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._times: StepTimes = NO_TIME
        self._adaptive: AdaptiveCounts = NO_COUNTS
        # Of the step whose output is being read.
        self._num_rows: dict[str, int] = {}
        self._without_tree: set[str] = set()
        self._verified: dict[str, Verification] = {}

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        """Slots without a node are not counted as draft tokens, by vLLM either.

        Tokens behind a stop are not counted as accepted: the scheduler counts a step before it cuts it.
        """
        report = DraftReport.of(model_runner_output)
        if report is not None:
            self._read(report, scheduler_output, model_runner_output.req_ids)
        self._verified = {}
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        for sent in outputs.values() if self._verified else ():
            for output in sent.outputs:
                if output.request_id in self._verified:
                    _correct(self._verified[output.request_id], len(output.new_token_ids))
        return outputs

    def _read(self, report: DraftReport, scheduler_output: Any, req_ids: list[str]) -> None:
        scheduled = scheduler_output.scheduled_spec_decode_tokens
        num_rows, num_drawn, num_nodes = report.per_request()
        scheduler_output.num_invalid_spec_tokens = {
            req_id: len(scheduled[req_id]) - count
            for req_id, count in zip(req_ids, num_nodes, strict=True)
            if req_id in scheduled
        }
        self._times, self._adaptive = report.times, report.adaptive
        self._num_rows = dict(zip(req_ids, num_rows, strict=True))
        self._without_tree = {req_id for req_id, count in zip(req_ids, num_drawn, strict=True) if count == 0}

    def make_spec_decoding_stats(
        self,
        spec_decoding_stats: Any,
        num_draft_tokens: int,
        num_accepted_tokens: int,
        num_invalid_spec_tokens: dict[str, int] | None,
        request_id: str,
    ) -> Any:
        """Called for every request whose drafts were verified."""
        has_tree = request_id not in self._without_tree
        if self.log_stats and has_tree:
            if spec_decoding_stats is None:
                spec_decoding_stats = SpecDecodingStats.new(self.num_spec_tokens)
            counts = StepCounts.of(spec_decoding_stats)
            num_rows = self._num_rows.get(request_id, num_draft_tokens)
            counts._replace(num_slots=counts.num_slots + num_rows).put_into(spec_decoding_stats)
            super().make_spec_decoding_stats(
                spec_decoding_stats, num_draft_tokens, num_accepted_tokens, num_invalid_spec_tokens, request_id
            )
        of_request = self.requests[request_id].spec_decode_metrics
        self._verified[request_id] = Verification(spec_decoding_stats, of_request, has_tree, num_accepted_tokens + 1)
        return spec_decoding_stats

    def make_stats(self, spec_decoding_stats: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Called at the end of every step, whose times and counts go with it, whether or not it verified drafts."""
        if self.log_stats and (any(self._times) or any(self._adaptive)):
            if spec_decoding_stats is None:
                spec_decoding_stats = SpecDecodingStats.new(self.num_spec_tokens)
            num_slots = StepCounts.of(spec_decoding_stats).num_slots
            StepCounts(num_slots, *self._times, *self._adaptive).put_into(spec_decoding_stats)
            self._times, self._adaptive = NO_TIME, NO_COUNTS
        return super().make_stats(spec_decoding_stats, *args, **kwargs)


def _correct(verification: Verification, num_sent: int) -> None:
    stats, of_request, has_tree, num_emitted = verification
    if has_tree and num_sent == num_emitted:
        return
    if stats is not None and has_tree:
        count_fewer(stats, num_emitted, num_sent)
    if of_request is not None:
        of_request.histogram[num_emitted - 1] -= 1
        if has_tree:
            of_request.histogram[num_sent - 1] += 1
        if of_request.per_step_accepted:  # kept at level "detailed" only
            of_request.per_step_accepted[-1:] = [num_sent - 1] if has_tree else []
            of_request.per_step_drafted[-1:] = of_request.per_step_drafted[-1:] if has_tree else []
