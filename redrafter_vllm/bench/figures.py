# SPDX-License-Identifier: Apache-2.0
"""The figures of a benchmark, from its rounds: medians over rounds, and speed-ups by pairs of turns."""

from collections.abc import Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from redrafter_vllm.bench.rounds import Round
from redrafter_vllm.bench.statistics import estimate, percentile

PERCENTS = (50, 90, 99)


def rows(rounds: Sequence[Round], plain: str) -> list[dict[str, Any]]:
    """A row for each load and configuration, in the order of the first round.

    Raises:
        ValueError: There is no round.
    """
    if not rounds:
        raise ValueError("no round has ended")
    keys = [(turn["concurrency"], turn["configuration"]) for turn in rounds[0]]
    order = list(dict.fromkeys(key[0] for key in keys))
    names = list(dict.fromkeys(key[1] for key in keys))
    found = []
    for concurrency in order:
        expected = _turns(rounds, concurrency, plain)
        found += [row(concurrency, name, _turns(rounds, concurrency, name), expected) for name in names]
    return found


def row(
    concurrency: int | str, name: str, turns: Sequence[dict[str, Any]], plain: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """The figures of one configuration under one load; times in milliseconds, memory in bytes."""
    speeds = [speed(turn) for turn in turns]
    memory = [turn["memory"] for turn in turns if turn.get("memory")]
    return {
        "concurrency": concurrency,
        "configuration": name,
        "requests": len(turns[0]["tokens"]),
        "tokens_per_second": asdict(estimate(speeds)),
        "requests_per_second": median(len(turn["tokens"]) / turn["seconds"] for turn in turns),
        "speedup": asdict(estimate([own / speed(other) for own, other in zip(speeds, plain, strict=True)])),
        "speedup_by_round": [own / speed(other) for own, other in zip(speeds, plain, strict=True)],
        **{measure: _percentiles(measure, turns) for measure in ("ttft", "tpot", "latency")},
        **{figure: _median(figure, turns) for figure in ("tokens_per_step", "nodes_per_step", "skipped")},
        "acceptance": acceptance([turn["acceptance"] for turn in turns]),
        "same_requests": min(turn["same_requests"] for turn in turns),
        "memory": max(memory) if memory else None,
        "milliseconds": next((turn["milliseconds"] for turn in turns if turn.get("milliseconds")), {}),
    }


def speed(turn: dict[str, Any]) -> float:
    """Tokens per second of a whole turn, prompts included."""
    return float(sum(turn["tokens"]) / turn["seconds"])


def milliseconds_of(measure: str, turn: dict[str, Any]) -> list[float]:
    """`ttft`, `tpot` or `latency` of the requests of a turn; `tpot` of those that have a second token.

    The time per output token is that after the first token, divided by the tokens after it.
    """
    if measure != "tpot":
        return [1e3 * seconds for seconds in turn[measure]]
    requests = zip(turn["latency"], turn["ttft"], turn["tokens"], strict=True)
    return [1e3 * (whole - first) / (tokens - 1) for whole, first, tokens in requests if tokens > 1]


def acceptance(by_round: Sequence[Sequence[float]]) -> list[float]:
    """Medians by depth; a round that did not reach a depth accepted nothing there."""
    depth = max(map(len, by_round), default=0)
    padded = [[*accepted, *[0.0] * (depth - len(accepted))] for accepted in by_round]
    return [median(at_depth) for at_depth in zip(*padded, strict=True)]


def _median(figure: str, turns: Sequence[dict[str, Any]]) -> float | None:
    """Over the rounds that have the figure; None where none has."""
    values = [turn[figure] for turn in turns if turn.get(figure) is not None]
    return median(values) if values else None


def _percentiles(measure: str, turns: Sequence[dict[str, Any]]) -> dict[str, float] | None:
    """The median over rounds of each percentile over requests; None where no request has a second token."""
    values = [found for turn in turns if (found := milliseconds_of(measure, turn))]
    if not values:
        return None
    return {f"p{percent}": median(percentile(each, percent) for each in values) for percent in PERCENTS}


def _turns(rounds: Sequence[Round], concurrency: int | str, name: str) -> list[dict[str, Any]]:
    return [
        turn
        for found in rounds
        for turn in found
        if turn["concurrency"] == concurrency and turn["configuration"] == name
    ]
