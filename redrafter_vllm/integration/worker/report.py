# SPDX-License-Identifier: Apache-2.0
"""What a worker knows of a step's trees and times, sent to the scheduler with the step's output."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from vllm.v1.worker.gpu.sample.output import SamplerOutput

from redrafter_vllm.integration.metrics import DraftReport
from redrafter_vllm.integration.worker.speculator import RedrafterSpeculator


@dataclass
class VerifiedOutput(SamplerOutput):
    """A sampler's output with the sizes of the trees that it has verified: `DraftReport.counts`."""

    num_nodes: np.ndarray | None = None


def attach_report(output: Any, speculator: RedrafterSpeculator) -> None:
    """Let the `ModelRunnerOutput` that an `AsyncOutput` will return carry the report of its step.

    Nobody reads the numbers of nodes before `get_output` has waited for the step's copies to the host.
    """
    verified, returned = output.sampler_output, output.model_runner_output
    if isinstance(verified, VerifiedOutput) and verified.num_nodes is not None:
        num_nodes = verified.num_nodes
    elif returned.req_ids:
        # The drafts that were scheduled, if any, have all been left out of the step.
        num_nodes = np.zeros((3, len(returned.req_ids)), np.int64)
    else:
        return
    DraftReport(num_nodes, *speculator.take_counts()).attach_to(returned)
