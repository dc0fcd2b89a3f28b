# SPDX-License-Identifier: Apache-2.0
"""A small example of the demonstration's evidence."""

from pathlib import Path

from benchmarks.demo.options import DemoOptions
from benchmarks.demo.pair import Pair
from benchmarks.demo.prompts import Prompt
from benchmarks.demo.report import Evidence
from benchmarks.demo.serve import Answer, Served
from benchmarks.demo.speed import Speed, Speeds
from benchmarks.engines.offline import EngineResult, Run
from redrafter_vllm.bench.acceptance import DraftCounters
from redrafter_vllm.config import DraftingConfig

GREEDY = [[5, 6, 7, 8, 9], [5, 5, 5]]
SEEDED = [[1, 2, 3, 4, 5], [6, 7, 8]]
PROMPTS: list[Prompt] = ["a", [{"role": "user", "content": "b"}]]


def make_evidence(
    *,
    greedy: list[list[int]] = GREEDY,
    seeded: list[list[int]] = SEEDED,
    steps: list[list[int]] | None = None,
    seconds: float = 2.0,
) -> Evidence:
    """Evidence in which the plain engine emits `GREEDY` and `SEEDED`; by default the server does too.

    Each of the measured passes emits 8 tokens: plain vLLM in 4 seconds, ReDrafter in `seconds`.
    """
    steps = steps or [[1, 3, 1], [1, 2]]
    nothing, counted = DraftCounters(0, ()), DraftCounters(3, (2, 1, 0, 0))
    ones = [[1] * 5, [1] * 3]
    pair = Pair(Path("/repository/target"), Path("/elsewhere/drafter"))
    return Evidence(
        pair=pair,
        options=DemoOptions(None, None, None, 2, 8, 0.8, DraftingConfig(4, 4, 16), True, Path("out")),
        served=Served(
            ["/repository/.venv/bin/vllm", "serve", str(pair.target)], 9.0, _answers(greedy), _answers(seeded), 3.0
        ),
        plain=EngineResult("V2", 1.0, Run(GREEDY, ones, 2.0, nothing), Run(SEEDED, ones, 2.0, nothing)),
        speeds=[
            Speeds(
                pair,
                Speed("V1", Run(GREEDY, ones, 4.0, nothing)),
                Speed("V2", Run(GREEDY, steps, seconds, counted)),
                Speed("V2", Run(GREEDY, steps, seconds, counted)),
            )
        ],
        seconds=100.0,
    )


def _answers(tokens: list[list[int]]) -> list[Answer]:
    return [Answer(prompt, [1], ids, "text") for prompt, ids in zip(PROMPTS, tokens, strict=True)]
