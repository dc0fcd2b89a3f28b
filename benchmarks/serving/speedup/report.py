# SPDX-License-Identifier: Apache-2.0
"""Figures of the comparison, computed from the turns' counts.

`speedup` compares whole calls, prompts included, as a user sees it. `decode_speedup` excludes the time until the last
prompt of a batch has its first token, as `tokens_per_step` excludes that token. `efficiency` is `decode_speedup` /
`tokens_per_step`; in records without `decode_speedup` it was `speedup` / `tokens_per_step`, which is a little less.
"""

import statistics
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from redrafter_vllm.bench.acceptance import DraftCounters, acceptance_by_depth, tokens_per_step
from redrafter_vllm.bench.compare import compare

COLUMNS = (
    "batch",
    "drafter",
    "nodes",
    "plain",
    "ReDrafter",
    "speed-up",
    "by round",
    "decoding",
    "tokens/step",
    "efficiency",
    "at most",
    "same texts",
)


def judge(
    plain: Sequence[dict[str, Any]], ours: Sequence[dict[str, Any]], beam_length: int, timed: dict[str, Any] | None
) -> dict[str, Any]:
    """Figures of one batch size. Speeds are in tokens, as below float32 the texts may have different lengths."""
    speeds = [[_emitted(turn) / turn["seconds"] for turn in engine] for engine in (plain, ours)]
    decoding = [[_decoded_per_second(turn) for turn in engine] for engine in (plain, ours)]
    decode_speedup = statistics.median(decoding[1]) / statistics.median(decoding[0])
    per_step = tokens_per_step(ours[0]["steps"])
    same = compare(plain[0]["tokens"], ours[0]["tokens"])
    figures: dict[str, Any] = {
        "tokens_per_second": _both(speeds),
        "speedup": statistics.median(speeds[1]) / statistics.median(speeds[0]),
        "speedup_by_round": [b / a for a, b in zip(*speeds, strict=True)],
        "decode_tokens_per_second": _both(decoding),
        "decode_speedup": decode_speedup,
        "tokens_per_step": per_step,
        "efficiency": decode_speedup / per_step,
        "acceptance_by_depth": acceptance_by_depth(DraftCounters.from_dict(ours[0]["counters"]), beam_length),
        "same_requests": same.same_requests,
        "requests": same.requests,
        "preemptions": sum(turn["preemptions"] for turn in (*plain, *ours)),
        "most_at_once": min(turn["most_at_once"] for turn in (*plain, *ours)),
    }
    if timed is not None:
        figures["milliseconds_per_step"] = {name: 1e3 * value for name, value in timed["phases"].items()}
    return figures


def problem_of(row: dict[str, Any]) -> str | None:
    """Why a row's figures are not valid for its batch size; None if they are."""
    if row["preemptions"]:
        return f"batch {row['batch']}: {row['preemptions']} preemptions, so its prompts were computed more than once"
    if row["most_at_once"] < row["batch"]:
        return f"batch {row['batch']}: at most {row['most_at_once']} requests ran at once"
    return None


def print_report(report: dict[str, Any], console: Console) -> None:
    table = Table(title="LLM.generate, greedy, held-out prompts; medians of tokens per second", title_justify="left")
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == "drafter" else "right")
    for row in report["results"]:
        ceiling = row["efficiency_ceiling"]
        table.add_row(
            str(row["batch"]),
            row["drafter"],
            str(row["nodes"]),
            *(f"{statistics.median(speeds):.1f}" for speeds in row["tokens_per_second"].values()),
            f"{row['speedup']:.2f}",
            " ".join(f"{ratio:.2f}" for ratio in row["speedup_by_round"]),
            f"{row['decode_speedup']:.2f}",
            f"{row['tokens_per_step']:.2f}",
            f"{row['efficiency']:.2f}",
            "" if ceiling is None else f"{ceiling:.3f}",
            f"{row['same_requests']} of {row['requests']}",
        )
    console.print(table)
    for row in report["results"]:
        if (reason := problem_of(row)) is not None:
            console.print(reason, style="red")
        if "milliseconds_per_step" in row:
            print_phases(row, console)
    for name, reason in report["failed"].items():
        console.print(f"{name} failed: {reason}", style="red", markup=False)


def print_phases(row: dict[str, Any], console: Console) -> None:
    phases = Table(title=f"a decode step of {row['drafter']}, batch {row['batch']}", title_justify="left")
    phases.add_column("phase")
    phases.add_column("ms", justify="right")
    for name, value in sorted(row["milliseconds_per_step"].items(), key=lambda item: -item[1]):
        phases.add_row(name, f"{value:.2f}")
    console.print(phases)


def _both(speeds: list[list[float]]) -> dict[str, list[float]]:
    return {"plain": speeds[0], "redrafter": speeds[1]}


def _emitted(turn: dict[str, Any]) -> int:
    return sum(map(len, turn["tokens"]))


def _decoded_per_second(turn: dict[str, Any]) -> float:
    tokens, seconds = turn["decoding"]["tokens"], turn["decoding"]["seconds"]
    return float(tokens / seconds) if seconds else 0.0
