# SPDX-License-Identifier: Apache-2.0
"""vLLM's statistics of speculative decoding, corrected to count nodes and received tokens, and extended by ours."""

from collections.abc import Callable
from typing import Any, NamedTuple

from vllm.v1.metrics.stats import RequestSpecDecodeMetrics
from vllm.v1.spec_decode.metrics import SpecDecodingStats

from redrafter_vllm.adaptive.record import NO_COUNTS, AdaptiveCounts
from redrafter_vllm.drafting.step_timer import NO_TIME, StepTimes
from redrafter_vllm.integration.method import uses_redrafter
from redrafter_vllm.integration.metrics import DraftReport, StepCounts, count_fewer


class Verification(NamedTuple):
    """One request's verification, as the scheduler has counted it before it looks for a stop."""

    stats: SpecDecodingStats | None  # of the step; None where statistics are off
    of_request: RequestSpecDecodeMetrics | None  # None where the request does not have them
    has_tree: bool  # the scheduler pads a request that joins the batch with slots that nothing was drafted for
    num_emitted: int


def read_report(original: Callable) -> Callable:
    """Wrap `Scheduler.update_from_output`: slots without a node are not counted as draft tokens, by vLLM either.

    Tokens behind a stop are not counted as accepted: the scheduler counts a step before it cuts it.
    """

    def update_from_output(self: Any, scheduler_output: Any, model_runner_output: Any) -> Any:
        report = DraftReport.of(model_runner_output)
        if report is not None:
            scheduled = scheduler_output.scheduled_spec_decode_tokens
            req_ids = model_runner_output.req_ids
            scheduler_output.num_invalid_spec_tokens = {
                req_id: len(scheduled[req_id]) - num_nodes
                for req_id, num_nodes in zip(req_ids, report.num_nodes, strict=True)
                if req_id in scheduled
            }
            self.redrafter_times = report.times
            self.redrafter_adaptive = report.adaptive
            self.redrafter_rows = dict(zip(req_ids, report.num_rows, strict=True))
            self.redrafter_without_tree = {
                req_id for req_id, num_drawn in zip(req_ids, report.num_drawn, strict=True) if num_drawn == 0
            }
        verified: dict[str, Verification] = {}
        self.redrafter_verified = verified
        outputs = original(self, scheduler_output, model_runner_output)
        for sent in outputs.values() if verified else ():
            for output in sent.outputs:
                if output.request_id in verified:
                    _correct(verified[output.request_id], len(output.new_token_ids))
        return outputs

    return update_from_output


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


def count_slots(original: Callable) -> Callable:
    """Wrap `Scheduler.make_spec_decoding_stats`, called for every request whose drafts were verified."""

    def make_spec_decoding_stats(
        self: Any,
        spec_decoding_stats: Any,
        num_draft_tokens: int,
        num_accepted_tokens: int,
        num_invalid_spec_tokens: dict[str, int] | None,
        request_id: str,
    ) -> Any:
        if not uses_redrafter(self.vllm_config):
            return original(
                self, spec_decoding_stats, num_draft_tokens, num_accepted_tokens, num_invalid_spec_tokens, request_id
            )
        has_tree = request_id not in getattr(self, "redrafter_without_tree", ())
        if self.log_stats and has_tree:
            if spec_decoding_stats is None:
                spec_decoding_stats = SpecDecodingStats.new(self.num_spec_tokens)
                times: StepTimes = getattr(self, "redrafter_times", NO_TIME)
                adaptive: AdaptiveCounts = getattr(self, "redrafter_adaptive", NO_COUNTS)
                StepCounts(0, *times, *adaptive).put_into(spec_decoding_stats)
                self.redrafter_times, self.redrafter_adaptive = NO_TIME, NO_COUNTS
            counts = StepCounts.of(spec_decoding_stats)
            num_rows = getattr(self, "redrafter_rows", {}).get(request_id, num_draft_tokens)
            counts._replace(num_slots=counts.num_slots + num_rows).put_into(spec_decoding_stats)
            original(
                self, spec_decoding_stats, num_draft_tokens, num_accepted_tokens, num_invalid_spec_tokens, request_id
            )
        of_request = self.requests[request_id].spec_decode_metrics
        self.redrafter_verified[request_id] = Verification(
            spec_decoding_stats, of_request, has_tree, num_accepted_tokens + 1
        )
        return spec_decoding_stats

    return make_spec_decoding_stats
