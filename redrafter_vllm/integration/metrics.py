# SPDX-License-Identifier: Apache-2.0
"""What is counted about drafting, from the worker that drafts to the process that exports it.

The worker knows how many nodes a tree has and how long drafting takes, the scheduler which requests count, the front
end the counters. On the way: `DraftReport` rides on the runner's output, `StepCounts` on vLLM's own statistics.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
from vllm.v1.spec_decode.metrics import SpecDecodingStats
from vllm.v1.worker.gpu.sample.output import SamplerOutput

from redrafter_vllm.draft_timer import NO_TIME, StepTimes

_REPORT = "redrafter_report"


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
    """Wrap `Scheduler.update_from_output`: slots without a node are no draft tokens, in vLLM's own counters, too."""

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
        return original(self, scheduler_output, model_runner_output)

    return update_from_output


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
        if self.log_stats and spec is not None and spec.method == "redrafter":
            # The scheduler pads a request that joins the batch with slots that nothing has been drafted for.
            if request_id in getattr(self, "redrafter_without_tree", ()):
                return spec_decoding_stats
            if spec_decoding_stats is None:
                spec_decoding_stats = SpecDecodingStats.new(self.num_spec_tokens)
                times: StepTimes = getattr(self, "redrafter_times", NO_TIME)
                StepCounts(0, times.drafting, times.whole).put_into(spec_decoding_stats)
                self.redrafter_times = NO_TIME
            counts = StepCounts.of(spec_decoding_stats)
            counts._replace(num_slots=counts.num_slots + num_draft_tokens).put_into(spec_decoding_stats)
        return original(
            self, spec_decoding_stats, num_draft_tokens, num_accepted_tokens, num_invalid_spec_tokens, request_id
        )

    return make_spec_decoding_stats
