# SPDX-License-Identifier: Apache-2.0
"""The report of a training as one file of HTML: drawings, tables, settings, versions and where everything is from."""

import json
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from redrafter_training.trainer.card import agreement_rows, data_rows, drafting_head, drafting_rows, training_rows
from redrafter_training.trainer.gradients import StepFigures
from redrafter_training.trainer.plots import course_figure, figures_by_depth
from redrafter_training.utils.run_folder import KEYS_FILE
from redrafter_vllm.checkpoint.card import place_name
from redrafter_vllm.utils import html_page
from redrafter_vllm.utils.atomic import write_text

REPORT_FILE = "report.html"


def write_report(run_folder: Path, report: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Writes the page to the folder of a run.

    Args:
        report: the content of `training.json`.
        state: the last checkpoint, see `redrafter_training.trainer.state`.
    """
    history = [StepFigures.from_row(row) for row in state["history"].tolist()]
    keys = (run_folder / KEYS_FILE).read_text(encoding="utf-8")
    page = training_page(report, history, state["evaluations"], state.get("course", []), keys)
    write_text(run_folder / REPORT_FILE, page)


def training_page(
    report: Mapping[str, Any],
    history: list[StepFigures],
    evaluations: list[tuple[int, dict[str, float]]],
    course: list[tuple[int, dict[str, float]]],
    keys: str,
) -> str:
    """The page; what the checkpoint of an earlier version lacks is left out.

    Args:
        course: the log's entries.
        keys: the settings as YAML.
    """
    parts = [html_page.facts_table(dict(training_rows(_without_versions(report))))]
    if find_spec("matplotlib") is not None:
        parts += _drawings(history, evaluations, course)
    parts += [*_agreement(report), *_drafting(report)]
    parts += [html_page.heading("Data"), html_page.facts_table(dict(data_rows(report["data"])))]
    parts += [html_page.heading("Origin"), html_page.facts_table(dict(_origin(report)))]
    parts += [html_page.heading("Versions"), html_page.facts_table(report["versions"])]
    parts += [html_page.heading("Settings"), html_page.preformatted(keys)]
    return html_page.page(f"Training of a drafter for {place_name(report['target'])}", parts)


def _without_versions(report: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in report.items() if key != "versions"}


def _drawings(
    history: list[StepFigures],
    evaluations: list[tuple[int, dict[str, float]]],
    course: list[tuple[int, dict[str, float]]],
) -> Iterable[str]:
    yield html_page.heading("Course")
    yield html_page.drawing(
        figures_by_depth(history, evaluations),
        "Training loss by depth; KL divergence on held-out text, a different measure; agreement on both.",
    )
    if course:
        yield html_page.drawing(course_figure(course), "Learning rate, gradient norm and throughput.")


def _agreement(report: Mapping[str, Any]) -> Iterable[str]:
    if rows := agreement_rows(report["metrics"]):
        yield html_page.heading("Agreement with the target on held-out text")
        yield html_page.figures_table(("depth", "KL, nats", *(f"top {k}" for k in range(1, len(rows[0]) - 1))), rows)


def _drafting(report: Mapping[str, Any]) -> Iterable[str]:
    if rows := drafting_rows(report["held_out"]):
        yield html_page.heading("Tokens per step on held-out prompts")
        yield html_page.figures_table(drafting_head(rows), rows)
        yield html_page.paragraph("Greedy, simulated with serving's search and tree; 1 is no gain.", note=True)


def _origin(report: Mapping[str, Any]) -> Iterable[tuple[str, object]]:
    yield "target", report["target"]
    yield from ((f"target's {part}", digest) for part, digest in report["target_content"].items())
    yield "command", report["command"]
    if start := report.get("started_from"):
        yield "started from", start["name"]
    yield "recipe", report["recipe"]
    yield "run", report["run"]
    yield "parameters of the drafter", f"{report['parameters']:,}"
    yield "time", f"{report['seconds']:,} s"
    if commands := report["data"].get("commands"):
        yield "commands of the data", json.dumps(commands)
