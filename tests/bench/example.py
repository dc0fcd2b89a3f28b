# SPDX-License-Identifier: Apache-2.0
"""Rounds of a benchmark whose figures are worked out by hand."""

from typing import Any

from redrafter_vllm.bench.figures import rows
from redrafter_vllm.bench.report import Report

PLAIN, OURS, NGRAM = "plain vLLM", "ReDrafter adaptive", "ngram"


def turn(name: str, concurrency: int | str, seconds: float, **others: Any) -> dict[str, Any]:
    """Two requests of 11 and 21 tokens; the second has to wait."""
    return {
        "configuration": name,
        "concurrency": concurrency,
        "seconds": seconds,
        "tokens": [11, 21],
        "ttft": [0.1, 0.3],
        "latency": [1.1, 2.3],
        "tokens_per_step": 1.0,
        "nodes_per_step": None,
        "skipped": None,
        "acceptance": [],
        "same_requests": 2,
        "memory": 1 << 30,
        **others,
    }


def rounds() -> list[list[dict[str, Any]]]:
    """Three rounds at 1 and 16 requests at a time."""
    found = []
    for number, (plain, ours) in enumerate([(4.0, 2.0), (4.4, 2.0), (4.2, 3.5)]):
        phases = {"milliseconds": {"target: layers": 20.0, "draft": 5.0}} if number == 0 else {}
        whole = {"milliseconds": {"whole step": 20.0}} if number == 0 else {}
        for_ours = {
            "tokens_per_step": 2.0 + number,
            "nodes_per_step": 5.0 - number,
            "skipped": 0.25,
            "acceptance": [0.8, 0.4][: 2 - number % 2],
            **phases,
        }
        found.append(
            [
                turn(PLAIN, 1, plain, **whole),
                turn(OURS, 1, ours, memory=3 << 29, **for_ours),
                turn(NGRAM, 1, plain, same_requests=1, nodes_per_step=1.5, **whole),
                turn(PLAIN, 16, 1.0, **whole),
                turn(OURS, 16, 1.25, **for_ours),
                turn(NGRAM, 16, 1.0, **whole),
            ]
        )
    return found


def report(**settings: Any) -> Report:
    """The report of these rounds."""
    run = {
        "settings": {
            "mode": "offline",
            "target": "models/some-target",
            "configurations": {PLAIN: None, OURS: {"method": "redrafter"}, NGRAM: {"method": "ngram"}},
            "data": "mt-bench",
            "temperature": 0.0,
            "prompt_tokens": 64,
            "max_tokens": 32,
            "options": ["--dtype", "float32"],
            **settings,
        },
        "versions": {"vllm": "0.32.0"},
        "hardware": "2 cores <of> something",
        "memory": "resident",
        "date": "2026-11-28",
        "command": "redrafter bench offline models/some-target",
    }
    return Report(run, rows(rounds(), PLAIN), 3)
