# SPDX-License-Identifier: Apache-2.0
"""What a worker knows of a step's trees, sent to the scheduler with the step's output."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from vllm.v1.worker.gpu.sample.output import SamplerOutput

from redrafter_vllm.adaptive.record import NO_COUNTS, AdaptiveCounts
from redrafter_vllm.drafting.step_timer import NO_TIME, StepTimes
from redrafter_vllm.integration.metrics import DraftReport


@dataclass
class VerifiedOutput(SamplerOutput):
    """A sampler's output with the sizes of the trees that it has verified.

    `num_nodes` [3, B], rows of drafts, nodes drawn and those that a grammar has not refused, may still be on its way to
    the host: it is there when the sampled tokens are.
    """

    num_nodes: np.ndarray | None = None
    times: StepTimes = NO_TIME
    adaptive: AdaptiveCounts = NO_COUNTS


def report_from_worker(original: Callable) -> Callable:
    """Wrap `AsyncOutput.get_output`, which waits until the step's copies to the host are complete."""

    def get_output(self: Any) -> Any:
        output = original(self)
        verified = self.sampler_output
        if isinstance(verified, VerifiedOutput) and verified.num_nodes is not None:
            num_rows, num_drawn, num_nodes = verified.num_nodes.tolist()
            DraftReport(num_rows, num_drawn, num_nodes, verified.times, verified.adaptive).attach_to(output)
        elif getattr(output, "req_ids", None):
            # The drafts that were scheduled, if any, have all been left out of the step.
            none = [0] * len(output.req_ids)
            DraftReport(none, none, none, NO_TIME).attach_to(output)
        return output

    return get_output
