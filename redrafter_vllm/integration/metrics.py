# SPDX-License-Identifier: Apache-2.0
"""Counts and times of drafting, as they travel from the worker through the scheduler to the front end's counters.

The worker knows how many nodes a tree has and how long drafting takes, the scheduler which requests count. On the way
`DraftReport` is an attribute of the runner's output, and `StepCounts` are part of vLLM's own statistics.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
from vllm.v1.spec_decode.metrics import SpecDecodingStats

from redrafter_vllm.adaptive.record import NO_COUNTS, AdaptiveCounts
from redrafter_vllm.drafting.step_timer import StepTimes

_REPORT = "redrafter_report"


@dataclass(frozen=True)
class DraftReport:
    """From worker to scheduler: the trees of the requests in batch order, and times of finished steps.

    `counts` [3, B], rows of drafts, nodes drawn and those that a grammar has not refused, may still be on its way to
    the host when the report is attached: it is there when the step's sampled tokens are.
    """

    counts: np.ndarray
    times: StepTimes
    adaptive: AdaptiveCounts = NO_COUNTS

    def per_request(self) -> tuple[list[int], list[int], list[int]]:
        """Of each request: rows of drafts, nodes drawn, and those that a grammar has not refused."""
        num_rows, num_drawn, num_nodes = self.counts.tolist()
        return num_rows, num_drawn, num_nodes

    def attach_to(self, model_runner_output: Any) -> None:
        setattr(model_runner_output, _REPORT, self)

    @staticmethod
    def of(model_runner_output: Any) -> "DraftReport | None":
        """The report that a `ModelRunnerOutput` carries; None where it carries none."""
        return getattr(model_runner_output, _REPORT, None)


class StepCounts(NamedTuple):
    """From scheduler to front end: what one step adds to vLLM's `SpecDecodingStats`, which already count nodes.

    These numbers follow vLLM's own entries of `num_draft_tokens_per_pos`: that list crosses the processes, and
    vLLM reads no more of it than its own entries. Fields that the type does not declare would be dropped on the way.
    """

    num_slots: int = 0
    draft_us: int = 0
    step_us: int = 0
    skipped_rounds: int = 0
    expected_thousandths: int = 0
    plain_us: int = 0
    taken_us: int = 0
    passed_us: int = 0

    @classmethod
    def of(cls, stats: SpecDecodingStats) -> Self:
        """The counts that statistics carry; zeros where they carry none."""
        return cls(*stats.num_draft_tokens_per_pos[stats.num_spec_tokens :])

    @staticmethod
    def are_in(stats: SpecDecodingStats) -> bool:
        """Whether statistics carry counts, which those of other methods never do."""
        return len(stats.num_draft_tokens_per_pos) > stats.num_spec_tokens

    def put_into(self, stats: SpecDecodingStats) -> None:
        """Replace the counts that statistics carry by these."""
        stats.num_draft_tokens_per_pos[stats.num_spec_tokens :] = self


def count_fewer(stats: SpecDecodingStats, num_counted: int, num_received: int) -> None:
    """Change a verification counted with `num_counted` emitted tokens to one of its first `num_received`.

    One of those is the token that the step would have emitted without drafts; the others are accepted. So
    `num_drafts + num_accepted_tokens` are the tokens received, from which vLLM's log line computes its mean.
    """
    stats.num_accepted_tokens -= num_counted - num_received
    for depth in range(num_received - 1, num_counted - 1):
        stats.num_accepted_tokens_per_pos[depth] -= 1
