# SPDX-License-Identifier: Apache-2.0
"""The figures of a finished training as tables."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from redrafter_training.config.job import Job
from redrafter_training.trainer.card import agreement_rows
from redrafter_training.trainer.metrics import TOP


def figures_table(metrics: Mapping[str, float]) -> Table:
    """Divergence and top-k agreement, one row per depth, from `redrafter{i}_kl` and `redrafter{i}_top{k}`."""
    table = Table(title="held-out text: agreement of the drafter with the target", title_justify="left")
    table.add_column("depth", justify="right")
    table.add_column("KL, nats", justify="right")
    for k in range(1, TOP + 1):
        table.add_column(f"top {k}", justify="right")
    for row in agreement_rows(metrics):
        table.add_row(*row)
    return table


def drafting_table(held_out: Mapping[str, Mapping[str, Any]]) -> Table:
    """Simulated tokens per step, one row per shape of the draft."""
    table = Table(title="held-out prompts, greedy: tokens per step", title_justify="left")
    for name in ("beams x length", "tokens per step", "accepted at depth 1, 2, ...", "steps"):
        table.add_column(name, justify="right")
    for shape, figures in held_out.items():
        accepted = " ".join(f"{rate:.0%}" for rate in figures["acceptance_by_depth"])
        table.add_row(shape, f"{figures['tokens_per_step']:.2f}", accepted, str(figures["steps"]))
    return table


def print_summary(job: Job, report: Mapping[str, Any], console: Console) -> None:
    console.print(
        f"{report['steps']} steps{_epochs(report)}, last training loss {report['training']['loss']:.3f}, "
        f"{report['seconds']} s"
    )
    if report["metrics"]:
        console.print(figures_table(report["metrics"]))
    if report["held_out"]:
        console.print(drafting_table(report["held_out"]))
    for what, where in (("drafter", job.out_dir), ("report, plot and logs", job.run_folder)):
        console.print(f"{what}: {where}", soft_wrap=True)


def _epochs(report: Mapping[str, Any]) -> str:
    return f" ({report['epochs']:.2f} epochs)" if "epochs" in report else ""
