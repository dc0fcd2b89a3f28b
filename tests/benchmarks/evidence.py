# SPDX-License-Identifier: Apache-2.0
"""A small example of the demonstration's evidence."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.demo.options import DemoOptions
from benchmarks.demo.pair import Pair
from benchmarks.demo.prompts import Prompt
from benchmarks.demo.report import Evidence
from benchmarks.demo.serve import Answer, Served
from benchmarks.demo.speed import PLAIN, REDRAFTER, Speeds
from benchmarks.engines.offline import EngineResult, Run
from redrafter_vllm.bench.acceptance import DraftCounters
from redrafter_vllm.bench.closed_loop import Answer as ReceivedAnswer
from redrafter_vllm.bench.closed_loop import result_of
from redrafter_vllm.config import DraftingConfig

GREEDY = [[5, 6, 7, 8, 9], [5, 5, 5]]
SEEDED = [[1, 2, 3, 4, 5], [6, 7, 8]]
PROMPTS: list[Prompt] = ["a", [{"role": "user", "content": "b"}]]


STEPS = [[1, 3, 1], [1, 2]]  # of `GREEDY`'s requests


def make_evidence(
    *,
    greedy: list[list[int]] = GREEDY,
    seeded: list[list[int]] = SEEDED,
    seconds: Sequence[float] = (2.0, 1.0, 4.0),
    together: bool = True,
) -> Evidence:
    """Evidence in which the plain engine emits `GREEDY` and `SEEDED`; by default the server does too.

    Each of the measured turns emits 8 tokens: plain vLLM in 4 seconds, ReDrafter in `seconds`, by round.
    """
    nothing = DraftCounters(0, ())
    ones = [[1] * 5, [1] * 3]
    pair = Pair(Path("/repository/target"), Path("/elsewhere/drafter"))
    return Evidence(
        pair=pair,
        options=DemoOptions(None, None, None, 2, 8, 0.8, 3, DraftingConfig(4, 4, 16), True, Path("out")),
        served=Served(
            ["/repository/.venv/bin/vllm", "serve", str(pair.target)], 9.0, _answers(greedy), _answers(seeded), 3.0
        ),
        plain=EngineResult("V2", 1.0, Run(GREEDY, ones, 2.0, nothing), Run(SEEDED, ones, 2.0, nothing)),
        speeds=[Speeds(pair, [[turn(PLAIN, 4.0, ones), turn(REDRAFTER, took, STEPS)] for took in seconds], together)],
        seconds=100.0,
    )


def turn(name: str, seconds: float, steps: list[list[int]]) -> dict[str, Any]:
    """A turn of the speed measurement that emits `GREEDY` in these steps."""
    emitted = [ReceivedAnswer(0.0, 1.0, seconds, tokens, counts) for tokens, counts in zip(GREEDY, steps, strict=True)]
    named = {"configuration": name, "concurrency": 1, "same_requests": 2, "memory": None}
    return {**named, **result_of(emitted, seconds)}


def _answers(tokens: list[list[int]]) -> list[Answer]:
    return [Answer(prompt, [1], ids, "text") for prompt, ids in zip(PROMPTS, tokens, strict=True)]
