# SPDX-License-Identifier: Apache-2.0
"""A small example of the demonstration's evidence."""

from pathlib import Path

from benchmarks.acceptance import DraftCounters
from benchmarks.demo.options import DemoOptions
from benchmarks.demo.report import Evidence
from benchmarks.demo.serve import Served
from benchmarks.engines.offline import EngineResult, Run, Workload
from redrafter_vllm.config import DraftingConfig

GREEDY = [[5, 6, 7, 8, 9], [5, 5, 5]]
SEEDED = [[1, 2, 3, 4, 5], [6, 7, 8]]


def make_evidence(
    *,
    greedy: list[list[int]] = GREEDY,
    seeded: list[list[int]] = SEEDED,
    served: list[list[int]] = GREEDY,
    steps: list[list[int]] | None = None,
) -> Evidence:
    """Evidence in which the plain engine emits `GREEDY` and `SEEDED`; by default the others do too.

    Seconds are 4 with vLLM as installed, 2 on the other runner and 1 with ReDrafter.
    """
    steps = steps or [[1, 3, 1], [1, 2]]
    nothing, counted = DraftCounters(0, ()), DraftCounters(3, (2, 1, 0, 0))
    ones = [[1] * 5, [1] * 3]

    def plain(runner: str, seconds: float) -> EngineResult:
        return EngineResult(runner, 1.0, Run(GREEDY, ones, seconds, nothing), Run(SEEDED, ones, seconds, nothing))

    target, drafter = Path("/repository/target"), Path("/elsewhere/drafter")
    options = DemoOptions(None, None, "short", 2, 8, 0.8, DraftingConfig(4, 4, 16), Path("out"))
    return Evidence(
        target=target,
        drafter=drafter,
        options=options,
        workload=Workload(["a", "b"], [[1], [2]], 8, 0.8),
        served=Served(["/repository/.venv/bin/vllm", "serve", str(target)], 9.0, served, 3.0),
        installed=plain("V1", 4.0),
        plain=plain("V2", 2.0),
        redrafter=EngineResult("V2", 1.0, Run(greedy, steps, 1.0, counted), Run(seeded, steps, 1.0, counted)),
        seconds=100.0,
    )
