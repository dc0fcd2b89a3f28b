# SPDX-License-Identifier: Apache-2.0
"""What is counted about drafting, from the worker that drafts to the process that exports it.

The worker knows how many nodes a tree has and how long drafting takes, the scheduler which requests count, the front
end the counters. On the way: `DraftReport` rides on the runner's output, `StepCounts` on vLLM's own statistics.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
from vllm.v1.metrics.stats import RequestSpecDecodeMetrics
from vllm.v1.spec_decode.metrics import SpecDecodingStats
from vllm.v1.worker.gpu.sample.output import SamplerOutput

from redrafter_vllm.drafting.step_timer import NO_TIME, StepTimes

_REPORT = "redrafter_report"


class Verification(NamedTuple):
    """One request's verification, as the scheduler has counted it before it looks for a stop."""

    stats: SpecDecodingStats | None  # of the step; None where statistics are off
    of_request: RequestSpecDecodeMetrics | None  # None where nobody asked for them
    has_tree: bool  # the scheduler pads a request that joins the batch with slots that nothing was drafted for
    num_emitted: int


@dataclass
class VerifiedOutput(SamplerOutput):
    """A sampler's output with what the verification was about.

    `num_nodes` [2, B], nodes drawn and those that a grammar has not refused, may still be on its way to the host: it is
    there when the sampled tokens are.
    """

    num_nodes: np.ndarray | None = None
    times: StepTimes = NO_TIME


@dataclass(frozen=True)
class DraftReport:
    """Goes with a `ModelRunnerOutput`: the trees of the requests in batch order, and times of finished steps."""

    num_drawn: list[int]
    num_nodes: list[int]
    times: StepTimes


class StepCounts(NamedTuple):
    """What one step adds to vLLM's `SpecDecodingStats`, which count nodes and depths for trees already.

    These three stand behind vLLM's own entries of `num_draft_tokens_per_pos`: that list crosses the processes, and
    nothing of vLLM's reads it. Fields that the type does not declare would be dropped on the way.
    """

    num_slots: int = 0
    draft_us: int = 0
    step_us: int = 0

    @classmethod
    def of(cls, stats: SpecDecodingStats) -> Self:
        """The counts that statistics carry; zeros where they carry none."""
        return cls(*stats.num_draft_tokens_per_pos[stats.num_spec_tokens :])

    @staticmethod
    def are_in(stats: SpecDecodingStats) -> bool:
        """Whether statistics carry counts, which those of other methods never do."""
        return len(stats.num_draft_tokens_per_pos) > stats.num_spec_tokens

    def put_into(self, stats: SpecDecodingStats) -> None:
        """Let statistics carry these counts instead of what they carry."""
        stats.num_draft_tokens_per_pos[stats.num_spec_tokens :] = self


def report_from_worker(original: Callable) -> Callable:
    """Wrap `AsyncOutput.get_output`, which waits until the step's copies to the host are complete."""

    def get_output(self: Any) -> Any:
        output = original(self)
        verified = self.sampler_output
        if isinstance(verified, VerifiedOutput) and verified.num_nodes is not None:
            num_drawn, num_nodes = verified.num_nodes.tolist()
            setattr(output, _REPORT, DraftReport(num_drawn, num_nodes, verified.times))
        return output

    return get_output


def read_report(original: Callable) -> Callable:
    """Wrap `Scheduler.update_from_output`: slots without a node are no draft tokens, in vLLM's own counters, too.

    Nor are tokens behind a stop accepted: the scheduler counts a step before it cuts it.
    """

    def update_from_output(self: Any, scheduler_output: Any, model_runner_output: Any) -> Any:
        report: DraftReport | None = getattr(model_runner_output, _REPORT, None)
        if report is not None:
            scheduled = scheduler_output.scheduled_spec_decode_tokens
            req_ids = model_runner_output.req_ids
            scheduler_output.num_invalid_spec_tokens = {
                req_id: len(scheduled[req_id]) - num_nodes
                for req_id, num_nodes in zip(req_ids, report.num_nodes, strict=True)
                if req_id in scheduled
            }
            self.redrafter_times = report.times
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
        take_back(stats, num_emitted, num_sent)
    if of_request is not None:
        of_request.histogram[num_emitted - 1] -= 1
        if has_tree:
            of_request.histogram[num_sent - 1] += 1
        if of_request.per_step_accepted:  # kept at level "detailed" only
            of_request.per_step_accepted[-1:] = [num_sent - 1] if has_tree else []
            of_request.per_step_drafted[-1:] = of_request.per_step_drafted[-1:] if has_tree else []


def take_back(stats: SpecDecodingStats, num_counted: int, num_received: int) -> None:
    """Of a verification counted with `num_counted` emitted tokens, count only the first `num_received`.

    One of those is what the step would have brought without drafts, however it came about; the others are accepted.
    So `num_drafts + num_accepted_tokens` are the tokens received, of which vLLM's log line makes its mean.
    """
    stats.num_accepted_tokens -= num_counted - num_received
    for depth in range(num_received - 1, num_counted - 1):
        stats.num_accepted_tokens_per_pos[depth] -= 1


def note_stop_strings(original: Callable) -> Callable:
    """Wrap `OutputProcessor.process_outputs`, where the front end cuts what stands behind a stop string."""

    def process_outputs(self: Any, engine_core_outputs: Any, *args: Any, **kwargs: Any) -> Any:
        num_sent = [len(output.new_token_ids) for output in engine_core_outputs]
        processed = original(self, engine_core_outputs, *args, **kwargs)
        num_received = [len(output.new_token_ids) for output in engine_core_outputs]
        if num_received != num_sent:
            cut = [pair for pair in zip(num_sent, num_received, strict=True) if pair[0] != pair[1]]
            # The outputs of one step may come in several chunks.
            self.redrafter_cut = [*getattr(self, "redrafter_cut", ()), *cut]
        return processed

    return process_outputs


def count_stop_strings(original: Callable) -> Callable:
    """Wrap `OutputProcessor.update_scheduler_stats`, between a step's outputs and the recording of its statistics."""

    def update_scheduler_stats(self: Any, scheduler_stats: Any) -> None:
        cut, self.redrafter_cut = getattr(self, "redrafter_cut", ()), []
        stats = getattr(scheduler_stats, "spec_decoding_stats", None)
        if stats is not None and StepCounts.are_in(stats):
            for num_sent, num_received in cut:
                take_back(stats, num_sent, num_received)
        original(self, scheduler_stats)

    return update_scheduler_stats


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
        spec = self.vllm_config.speculative_config
        if spec is None or spec.method != "redrafter":
            return original(
                self, spec_decoding_stats, num_draft_tokens, num_accepted_tokens, num_invalid_spec_tokens, request_id
            )
        has_tree = request_id not in getattr(self, "redrafter_without_tree", ())
        if self.log_stats and has_tree:
            if spec_decoding_stats is None:
                spec_decoding_stats = SpecDecodingStats.new(self.num_spec_tokens)
                times: StepTimes = getattr(self, "redrafter_times", NO_TIME)
                StepCounts(0, times.drafting, times.whole).put_into(spec_decoding_stats)
                self.redrafter_times = NO_TIME
            counts = StepCounts.of(spec_decoding_stats)
            counts._replace(num_slots=counts.num_slots + num_draft_tokens).put_into(spec_decoding_stats)
            original(
                self, spec_decoding_stats, num_draft_tokens, num_accepted_tokens, num_invalid_spec_tokens, request_id
            )
        of_request = self.requests[request_id].spec_decode_metrics
        self.redrafter_verified[request_id] = Verification(
            spec_decoding_stats, of_request, has_tree, num_accepted_tokens + 1
        )
        return spec_decoding_stats

    return make_spec_decoding_stats
