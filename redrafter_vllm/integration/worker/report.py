# SPDX-License-Identifier: Apache-2.0
"""What a worker knows of a step's trees, sent to the scheduler with the step's output."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from vllm.v1.worker.gpu.sample.output import SamplerOutput

from redrafter_vllm.adaptive.record import NO_COUNTS, AdaptiveCounts
from redrafter_vllm.drafting.step_timer import NO_TIME, StepTimes
from redrafter_vllm.integration.metrics import DraftReport


@dataclass
class VerifiedOutput(SamplerOutput):
    """A sampler's output with the sizes of the trees that it has verified: `DraftReport.counts`."""

    num_nodes: np.ndarray | None = None
    times: StepTimes = NO_TIME
    adaptive: AdaptiveCounts = NO_COUNTS


def attach_report(output: Any) -> None:
    """Let the `ModelRunnerOutput` that an `AsyncOutput` will return carry the report of its step.

    Nobody reads it before `get_output` has waited for the step's copies to the host.
    """
    verified, returned = output.sampler_output, output.model_runner_output
    if isinstance(verified, VerifiedOutput) and verified.num_nodes is not None:
        DraftReport(verified.num_nodes, verified.times, verified.adaptive).attach_to(returned)
    elif returned.req_ids:
        # The drafts that were scheduled, if any, have all been left out of the step.
        DraftReport(np.zeros((3, len(returned.req_ids)), np.int64), NO_TIME).attach_to(returned)
