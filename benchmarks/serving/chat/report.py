# SPDX-License-Identifier: Apache-2.0
"""The tables of the comparison, in a terminal, as Markdown and as a plot."""

from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import cli
from benchmarks.serving.chat.comparison import AGREEMENT
from benchmarks.serving.chat.methods import LOOKUP
from benchmarks.serving.chat.questions import ALL
from redrafter_vllm.bench.tables import DEPTHS, Grid, figure, plot
from redrafter_vllm.utils.atomic import write_text

SERVED = "ReDrafter, served, "  # before the name of a tree


def grids(report: cli.Report) -> list[Grid]:
    """For each temperature two tables: served tokens per step by group, and acceptance by depth with tokens/s."""
    config = report["config"]
    depth = min(DEPTHS, max((len(row["acceptance_by_depth"]) for row in report["results"]), default=0))
    made = []
    for temperature in config["temperatures"]:
        rows = [row for row in report["results"] if row["temperature"] == temperature]
        served = [row for row in rows if not row["simulated"]]
        asked = f"{config['prompts']}, {heat(temperature)}, {report['requests']['all']} requests"
        by_group = [
            [group, *(figure(row["tokens_per_step"][group]) for row in served), *["–"] * len(report["failed"])]
            for group in report["groups"]
        ]
        columns = ["prompts", *(row["method"].removeprefix(SERVED) for row in served), *report["failed"]]
        made.append(
            Grid(f"{asked} of at most {config['max_tokens']} tokens: tokens per step, served", columns, by_group)
        )
        title = (
            f"{asked}: share of the steps that accept a draft of a depth; tokens/s at batch {config['batch']} in "
            f"{config['dtype']}"
        )
        by_depth = [
            [
                row["method"],
                *(figure(value) for value in [*row["acceptance_by_depth"], *[None] * depth][:depth]),
                figure(row["tokens_per_second"], ".1f"),
            ]
            for row in rows
        ]
        made.append(Grid(title, ["method", *map(str, range(1, depth + 1)), "tokens/s"], by_depth))
    return made


def heat(temperature: float) -> str:
    return f"temperature {temperature:g}" if temperature else "greedy"


def remarks(report: cli.Report) -> list[str]:
    """What the tables do not say: agreement, ratios to prompt lookup, methods that failed, prompts left out."""
    said = []
    for row in report["agreement"]:
        within = "within" if abs(row["difference"]) <= AGREEMENT else "NOT within"
        said.append(
            f"{row['tree']}, {heat(row['temperature'])}: simulated differs from served by {row['difference']:+.2%}, "
            f"{within} {AGREEMENT:.0%}"
        )
    for row in report["results"]:
        lookup = lookup_of(report, row["temperature"])
        if row["tree"] is not None and not row["simulated"] and lookup is not None:
            ratio = row["tokens_per_step"][ALL] / lookup
            said.append(
                f"{row['tree']}, {heat(row['temperature'])}: {ratio:.2f} times the tokens per step of prompt lookup"
            )
    said += [f"{name} has no figures: {reason}" for name, reason in report["failed"].items()]
    said += [f"{name}, at a temperature, has no figures: {reason}" for name, reason in report["greedy_alone"].items()]
    if report["left_out"]:
        said.append(f"{report['left_out']} turns are left out: with their response they are longer than the window")
    return said


def lookup_of(report: cli.Report, temperature: float) -> float | None:
    """Tokens per step of prompt lookup; None if it was not run."""
    rows = [row for row in report["results"] if row["temperature"] == temperature and row["method"].startswith(LOOKUP)]
    return rows[0]["tokens_per_step"][ALL] if rows else None


def show(report: cli.Report, console: Console) -> None:
    for grid in grids(report):
        console.print(grid.rich())
    for line in remarks(report):
        console.print(line, markup=False)


def store(report: cli.Report, file: Path) -> list[Path]:
    """Markdown and PNG beside the record `file`."""
    text = "\n".join(grid.markdown() for grid in grids(report))
    listed = "".join(f"- {line.splitlines()[0]}\n" for line in remarks(report))
    markdown = file.with_suffix(".md")
    write_text(markdown, f"{text}\n{listed}")
    return [markdown, *plot(file.with_suffix(".png"), lambda axes: draw(report, axes))]


def draw(report: cli.Report, axes: Any) -> None:
    """Tokens per step by group, a colour for each method, at the first temperature."""
    temperature = report["config"]["temperatures"][0]
    rows = [row for row in report["results"] if row["temperature"] == temperature and not row["simulated"]]
    groups, width = report["groups"], 0.8 / max(1, len(rows))
    for number, row in enumerate(rows):
        places = [place - 0.4 + (number + 0.5) * width for place in range(len(groups))]
        axes.bar(places, [row["tokens_per_step"][group] or 0 for group in groups], width, label=row["method"])
    axes.set_xticks(range(len(groups)), groups, rotation=30, ha="right")
    axes.set(ylabel="tokens per step", title=f"{report['config']['prompts']}, {heat(temperature)}", ylim=(1, None))
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize=8)
