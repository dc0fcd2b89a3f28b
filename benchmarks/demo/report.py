# SPDX-License-Identifier: Apache-2.0
"""The demonstration's figures: computed, checked, printed, stored."""

import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.acceptance import acceptance_by_depth, tokens_per_step
from benchmarks.compare import Comparison, compare
from benchmarks.demo.options import DemoOptions
from benchmarks.demo.serve import Served
from benchmarks.engines.offline import BATCH, ENGINE, THREADS, EngineResult, Run, Workload
from benchmarks.record import command, versions

REQUIRED_TOKENS_PER_STEP = 1.7
SPEED_REMARK = (
    "The target is so small that a step costs mostly fixed overhead, and on a CPU a verification of many rows costs "
    "several times a plain step: wall-clock here says little. What carries over is the tokens per step."
)


@dataclass(frozen=True)
class Evidence:
    """The inputs and outputs of all runs."""

    target: Path
    drafter: Path
    options: DemoOptions
    workload: Workload
    served: Served
    installed: EngineResult  # vLLM as its users run it
    plain: EngineResult  # vLLM on the runner that ReDrafter uses
    redrafter: EngineResult
    seconds: float


@dataclass(frozen=True)
class Figures:
    """Comparisons and acceptance, computed from the evidence."""

    greedy: Comparison
    seeded: Comparison
    served: Comparison
    tokens_per_step: float
    acceptance_by_depth: list[float]

    @property
    def failures(self) -> list[str]:
        """What the demonstration has to show and did not, one sentence each."""
        failures = [
            f"{what} outputs differ from plain vLLM's ({comparison})"
            for what, comparison in (("greedy", self.greedy), ("seeded", self.seeded), ("the server's", self.served))
            if not comparison.identical
        ]
        if self.tokens_per_step < REQUIRED_TOKENS_PER_STEP:
            failures.append(f"tokens per step are {self.tokens_per_step:.2f}, below {REQUIRED_TOKENS_PER_STEP}")
        return failures


def evaluate(evidence: Evidence) -> Figures:
    """Compare outputs and compute acceptance."""
    plain, ours = evidence.plain, evidence.redrafter
    return Figures(
        greedy=compare(plain.greedy.tokens, ours.greedy.tokens),
        seeded=compare(plain.seeded.tokens, ours.seeded.tokens),
        served=compare(plain.greedy.tokens, evidence.served.tokens),
        tokens_per_step=tokens_per_step(ours.greedy.steps),
        acceptance_by_depth=acceptance_by_depth(ours.greedy.counters, evidence.options.drafting.beam_length),
    )


def as_json(evidence: Evidence, figures: Figures, argv: Sequence[str]) -> dict[str, Any]:
    """The report as stored; `argv` are the demonstration's arguments."""
    ours, plain, installed = (e.greedy for e in (evidence.redrafter, evidence.plain, evidence.installed))
    return {
        "identical_greedy": figures.greedy.identical,
        "identical_seeded": figures.seeded.identical,
        "identical_served": figures.served.identical,
        "tokens_per_step": figures.tokens_per_step,
        "acceptance_by_depth": figures.acceptance_by_depth,
        "speedup": ours.tokens_per_second / installed.tokens_per_second,
        "speedup_baseline": "vLLM as installed, without this project's packages",
        "speedup_same_runner": ours.tokens_per_second / plain.tokens_per_second,
        "remark": SPEED_REMARK,
        "versions": versions(),
        "failures": figures.failures,
        "comparisons": {
            "greedy": asdict(figures.greedy),
            "seeded": asdict(figures.seeded),
            "served": asdict(figures.served),
        },
        "tokens_per_step_seeded": tokens_per_step(evidence.redrafter.seeded.steps),
        "engines": {
            name: {
                "runner": engine.runner,
                "start_seconds": engine.start_seconds,
                "tokens_per_second_greedy": engine.greedy.tokens_per_second,
                "tokens_per_second_seeded": engine.seeded.tokens_per_second,
            }
            for name, engine in (
                ("installed", evidence.installed),
                ("plain", evidence.plain),
                ("redrafter", evidence.redrafter),
            )
        },
        "server": {key: value for key, value in asdict(evidence.served).items() if key != "tokens"},
        "config": {
            "target": str(evidence.target),
            "drafter": str(evidence.drafter),
            "drafting": asdict(evidence.options.drafting),
            "engine": ENGINE,
            "environment": THREADS,
            "temperature_seeded": evidence.workload.temperature,
            "max_tokens": evidence.workload.max_tokens,
            "recipe": evidence.options.recipe if evidence.options.drafter is None else None,
        },
        "command": command("benchmarks.demo", argv),
        "hardware": {"machine": platform.machine(), "cores": len(os.sched_getaffinity(0))},
        "seconds": evidence.seconds,
        "prompts": evidence.workload.texts,
    }


def print_tables(evidence: Evidence, figures: Figures, console: Console) -> None:
    """Print outcome and speed as tables."""
    console.print(_outcome_table(evidence, figures))
    console.print(_speed_table(evidence))
    console.print(SPEED_REMARK, style="dim")


def _outcome_table(evidence: Evidence, figures: Figures) -> Table:
    drafting, count = evidence.options.drafting, len(evidence.workload.texts)
    shape = f"{drafting.beam_width} beams of {drafting.beam_length}, {drafting.num_speculative_tokens} nodes"
    title = f"ReDrafter ({shape}) against plain vLLM, fp32, {count} held-out prompts"
    table = Table(title=title, title_justify="left")
    table.add_column("what")
    table.add_column("result")
    for name, comparison in (
        ("greedy", figures.greedy),
        (f"seeded, temperature {evidence.workload.temperature}", figures.seeded),
        ("greedy, through vllm serve", figures.served),
    ):
        table.add_row(name, str(comparison), style="green" if comparison.identical else "bold red")
    table.add_row("tokens per step, greedy", f"{figures.tokens_per_step:.2f}")
    by_depth = "  ".join(f"{depth}: {rate:.0%}" for depth, rate in enumerate(figures.acceptance_by_depth, start=1))
    table.add_row("steps that accept at depth", by_depth)
    return table


def _speed_table(evidence: Evidence) -> Table:
    table = Table(title=f"tokens per second, up to {BATCH} requests at once", title_justify="left")
    for column in ("engine", "runner", "greedy", "seeded"):
        table.add_column(column, justify="left" if column in ("engine", "runner") else "right")
    for name, engine in (
        ("vLLM as installed", evidence.installed),
        ("vLLM on ReDrafter's runner", evidence.plain),
        ("vLLM with ReDrafter", evidence.redrafter),
    ):
        table.add_row(name, engine.runner, _speed(engine.greedy), _speed(engine.seeded))
    return table


def _speed(run: Run) -> str:
    return f"{run.tokens_per_second:.0f}"


def with_relative_paths(evidence: Evidence, root: Path) -> Evidence:
    """The evidence with paths relative to `root`, so that a stored report names no folder of this machine."""

    def short(path: Path) -> Path:
        return path.relative_to(root) if path.is_relative_to(root) else path

    words = [word.replace(f"{root}{os.sep}", "") for word in evidence.served.command]
    served = replace(evidence.served, command=words)
    return replace(evidence, target=short(evidence.target), drafter=short(evidence.drafter), served=served)
