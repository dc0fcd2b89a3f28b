# SPDX-License-Identifier: Apache-2.0
"""The demonstration's figures: computed, checked, printed, stored."""

import os
import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.demo import speed
from benchmarks.demo.colour import ACCEPTED, coloured
from benchmarks.demo.options import DemoOptions
from benchmarks.demo.pair import Pair
from benchmarks.demo.prompts import last_words
from benchmarks.demo.serve import Served
from benchmarks.demo.speed import PLAIN, REDRAFTER, Speeds
from benchmarks.engines.offline import ENGINE, THREADS, EngineResult
from benchmarks.record import command
from redrafter_vllm.bench.compare import Comparison, compare
from redrafter_vllm.bench.machine import hardware, versions
from redrafter_vllm.bench.tables import DEPTHS
from redrafter_vllm.predict.shapes import ShapeError, find_shape


@dataclass(frozen=True)
class Evidence:
    """The inputs and outputs of all runs."""

    pair: Pair
    options: DemoOptions
    served: Served  # float32, with ReDrafter
    plain: EngineResult  # float32, on the runner that ReDrafter uses
    speeds: list[Speeds]  # the pair's, then perhaps the inflated pair's
    seconds: float


@dataclass(frozen=True)
class Figures:
    """Comparisons and acceptance, computed from the evidence."""

    greedy: Comparison
    seeded: Comparison
    tokens_per_step: float
    acceptance_by_depth: list[float]

    @property
    def failures(self) -> list[str]:
        """What the demonstration has to show and did not, one sentence each."""
        return [
            f"{what} answers differ from plain vLLM's ({comparison})"
            for what, comparison in (("greedy", self.greedy), ("seeded", self.seeded))
            if not comparison.identical
        ]


def evaluate(evidence: Evidence) -> Figures:
    """Compare answers and compute acceptance."""
    plain, served, ours = evidence.plain, evidence.served, evidence.speeds[0].rows[REDRAFTER]
    return Figures(
        greedy=compare(plain.greedy.tokens, [answer.token_ids for answer in served.greedy]),
        seeded=compare(plain.seeded.tokens, [answer.token_ids for answer in served.seeded]),
        tokens_per_step=ours["tokens_per_step"],
        acceptance_by_depth=ours["acceptance"],
    )


def as_json(evidence: Evidence, figures: Figures, argv: Sequence[str], root: Path) -> dict[str, Any]:
    """The report as stored; `argv` are the demonstration's arguments, and paths are relative to `root`."""
    machine, description = hardware("cuda" if torch.cuda.is_available() else "cpu")
    return {
        "identical_greedy": figures.greedy.identical,
        "identical_seeded": figures.seeded.identical,
        "tokens_per_step": figures.tokens_per_step,
        "acceptance_by_depth": figures.acceptance_by_depth,
        "speeds": [_speeds_as_json(speeds, root) for speeds in evidence.speeds],
        "versions": versions(),
        "failures": figures.failures,
        "comparisons": {"greedy": asdict(figures.greedy), "seeded": asdict(figures.seeded)},
        "server": {
            "command": shlex.join(_short(word, root) for word in evidence.served.command),
            "start_seconds": evidence.served.start_seconds,
            "seconds": evidence.served.seconds,
        },
        "config": {
            "target": _short(evidence.pair.target, root),
            "drafter": _short(evidence.pair.drafter, root),
            "drafting": asdict(evidence.options.drafting),
            "engine_compared": ENGINE,
            "environment_compared": THREADS,
            "engine_timed": speed.ENGINE,
            "temperature_seeded": evidence.options.temperature,
            "max_tokens": evidence.options.max_tokens,
            "trained": evidence.options.train,
        },
        "command": command("benchmarks.demo", argv),
        "hardware": {"machine": machine, "description": description, "cores": len(os.sched_getaffinity(0))},
        "seconds": evidence.seconds,
        "prompts": [answer.prompt for answer in evidence.served.greedy],
        "answers": [answer.text for answer in evidence.served.greedy],
    }


def _speeds_as_json(speeds: Speeds, root: Path) -> dict[str, Any]:
    return {
        "target": _short(speeds.pair.target, root),
        "parameters": _parameters(speeds.pair.target),
        "in_turns": speeds.together,
        "speedup": speeds.speedup,
        "speedup_by_round": speeds.speedup_by_round,
        "engines": list(speeds.rows.values()),
    }


def _short(place: str | Path, root: Path) -> str:
    """Without `root`, so that a stored report names no folder of this machine."""
    return str(place).replace(f"{root}{os.sep}", "")


def print_tables(evidence: Evidence, figures: Figures, console: Console) -> None:
    """Print outcome and speed as tables, and where drafting did not pay, why."""
    console.print(_outcome_table(evidence, figures))
    console.print(_speed_table(evidence))
    if slower := [_label(speeds) for speeds in evidence.speeds if speeds.speedup < 1]:
        console.print(
            f"Slower with ReDrafter: {', '.join(slower)}. On a small target, above all on a CPU, a step's further rows "
            "and the drafting cost more time than accepted drafts save. Adaptive trees notice it and pause, but their "
            "trials take time as well.",
            soft_wrap=True,
        )


def _outcome_table(evidence: Evidence, figures: Figures) -> Table:
    drafting = evidence.options.drafting
    shape = f"{drafting.beam_width} beams of {drafting.beam_length} in {drafting.num_speculative_tokens} nodes"
    table = Table(title=f"vllm serve with ReDrafter ({shape}) against plain vLLM, float32", title_justify="left")
    table.add_column("what")
    table.add_column("result")
    for name, comparison in (
        ("greedy", figures.greedy),
        (f"seeded, temperature {evidence.options.temperature}", figures.seeded),
    ):
        table.add_row(f"token ids, {name}", str(comparison), style="green" if comparison.identical else "bold red")
    shown = enumerate(figures.acceptance_by_depth[:DEPTHS], start=1)
    by_depth = "  ".join(f"{depth}: {rate:.0%}" for depth, rate in shown)
    table.add_row("steps that accept at depth, in bfloat16", by_depth)
    return table


def _speed_table(evidence: Evidence) -> Table:
    table = Table(title="one request at a time, greedy, bfloat16, compiled; medians over rounds", title_justify="left")
    for column in ("target", "engine", "tokens/step", "tokens/s", "against plain", "by round"):
        table.add_column(column, justify="left" if column in ("target", "engine") else "right")
    for speeds in evidence.speeds:
        table.add_row(_label(speeds), PLAIN, *_cells(speeds.rows[PLAIN]))
        ratio = f"{speeds.speedup:.2f} times"
        table.add_row("", REDRAFTER, *_cells(speeds.rows[REDRAFTER]), ratio, _by_round(speeds), end_section=True)
    return table


def _cells(row: dict[str, Any]) -> tuple[str, str]:
    return f"{row['tokens_per_step']:.2f}", f"{row['tokens_per_second']['median']:.1f}"


def _by_round(speeds: Speeds) -> str:
    """The range of the speed-ups of single rounds."""
    if not speeds.together:
        return "one pass each, not in turns"
    found = speeds.speedup_by_round
    return f"{min(found):.2f} to {max(found):.2f} in {len(found)}"


def _label(speeds: Speeds) -> str:
    parameters = _parameters(speeds.pair.target)
    return speeds.pair.target.name + ("" if parameters is None else f", {parameters / 1e9:.3g} billion parameters")


def _parameters(target: Path) -> int | None:
    """None for a target that is like no Llama."""
    with suppress(ShapeError):
        return find_shape(str(target)).num_parameters
    return None


def print_answer(evidence: Evidence, tokenizer: Any, console: Console) -> None:
    """Print one answer: the one with the median of tokens per step."""
    turn = evidence.speeds[0].turn_with_drafts()
    answers: list[tuple[list[int], list[int]]] = list(zip(turn["outputs"], turn["emitted"], strict=True))
    by_saving = sorted(range(len(answers)), key=lambda index: len(answers[index][1]) / len(answers[index][0]))
    chosen = by_saving[len(by_saving) // 2]
    tokens, steps = answers[chosen]
    brackets = console.color_system is None
    console.print(f"\nOne answer: {len(tokens)} tokens in {len(steps)} steps. ", end="", highlight=False)
    console.print("«Accepted drafts»" if brackets else "Accepted drafts", style=ACCEPTED, end="", markup=False)
    console.print(" are marked; the target emitted the rest itself, the last of each step. First the prompt's end.\n")
    prompt = last_words(evidence.served.greedy[chosen].prompt)
    console.print(coloured(prompt, tokens, steps, tokenizer.decode, brackets=brackets), highlight=False)


def print_next_steps(pair: Pair, console: Console) -> None:
    """How to serve the pair, and where to read on."""
    console.print("\nServe it:", style="bold")
    serve = ["vllm", "serve", str(pair.target), "--speculative-model", str(pair.drafter)]
    console.print(f"  {shlex.join(serve)}", markup=False, highlight=False, soft_wrap=True)
    console.print("Your own model, drafters, options: README.md, docs/getting_started.md", highlight=False)
