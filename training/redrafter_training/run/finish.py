# SPDX-License-Identifier: Apache-2.0
"""After the last step: the drafter is exported first, then evaluated."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from redrafter_training.config.job import Job
from redrafter_training.config.recipe import DistillConfig
from redrafter_training.distributed import checkpoints
from redrafter_training.run.evaluation import EXPORT_DTYPE, HeldOutFigures
from redrafter_training.run.hub import HubError, push
from redrafter_training.run.report_page import write_report
from redrafter_training.run.trackers import log_result
from redrafter_training.trainer.export import export, update_report
from redrafter_training.trainer.gradients import StepFigures
from redrafter_training.trainer.plots import plot_training
from redrafter_training.trainer.state import read_state, stored_best
from redrafter_training.utils.provenance import provenance
from redrafter_training.utils.run_folder import run_name
from redrafter_vllm.adaptive.stored import CALIBRATION
from redrafter_vllm.checkpoint.config import DrafterConfig
from redrafter_vllm.checkpoint.places import read_provenance
from redrafter_vllm.model.drafter import Drafter
from redrafter_vllm.utils.messages import sentence

TAIL = 50  # steps
HISTORY = ("command", "versions", "run", "data", "config", "steps", "epochs", "best_step", "started_from")

Evaluate = Callable[[Drafter, Sequence[Tensor]], HeldOutFigures]


@dataclass(frozen=True)
class Outcome:
    """The result of the training processes."""

    drafter_config: dict[str, Any]
    facts: dict[str, object]  # about the data
    prompts: list[Tensor]  # held out, for the final evaluation
    steps_per_epoch: float = 0.0  # 0: unknown


@dataclass(frozen=True)
class Report:
    """The content of `training.json`, and the reason if the final evaluation or the upload failed."""

    content: dict[str, Any]
    unmeasured: str | None = None
    not_pushed: str | None = None
    address: str | None = None  # of the uploaded drafter


def finish(
    job: Job,
    config: DistillConfig,
    recipe: str,
    target: Mapping[str, str],
    outcome: Outcome,
    evaluate: Evaluate,
    started: float,
) -> Report:
    """Exports the drafter of the last checkpoint with `training.json` and card, evaluates it and adds the figures.

    Args:
        target: the target's fingerprint.
        started: time of the start, by the monotonic clock.

    Raises:
        PlaceError: another drafter is in the output folder by now.
    """
    newest = checkpoints.latest(job.checkpoints)
    if newest is None:
        raise FileNotFoundError(f"the training left no checkpoint in {job.checkpoints}")
    state = read_state(newest)
    history = [StepFigures.from_row(row) for row in state["history"].tolist()]
    evaluations = state["evaluations"]
    drafter = Drafter(DrafterConfig(**outcome.drafter_config))
    best = stored_best(state) if job.patience else None
    drafter.load_state_dict(state["drafter"] if best is None else best.weights)
    if best is not None:
        chosen = next(figures for step, figures in evaluations if step == best.step)
    else:
        chosen = evaluations[-1][1] if evaluations else {}
    content = provenance("redrafter_training") | {
        "run": run_name(job.run_folder),
        "recipe": recipe,
        "target": job.target,
        "target_content": dict(target),
        "data": outcome.facts,
        "config": asdict(config),
        **({} if job.init_from is None else {"started_from": history_of(job.init_from)}),
        "parameters": sum(p.numel() for p in drafter.parameters()),
        "steps": len(history),
        **({"epochs": len(history) / outcome.steps_per_epoch} if outcome.steps_per_epoch else {}),
        **({} if best is None else {"best_step": best.step}),
        "training": tail_means(history),
        "metrics": chosen,
        "held_out": {},
        "seconds": round(time.monotonic() - started),
    }
    plot_training(history, evaluations, job.run_folder / "training.png")
    export(drafter, job.out_dir, content, EXPORT_DTYPE, overwrite=job.overwrite)
    unmeasured = None
    if job.evaluate:
        try:
            measured = evaluate(drafter, outcome.prompts)
            content["held_out"] = measured.tokens_per_step
            content[CALIBRATION] = asdict(measured.calibration)
        except Exception as problem:  # of any type: the drafter is exported already
            unmeasured = f"{type(problem).__name__}: {sentence(problem)}"
        content["seconds"] = round(time.monotonic() - started)
        update_report(job.out_dir, content)
    write_report(job.run_folder, content, state)
    rates = {f"tokens_per_step/{shape}": figures["tokens_per_step"] for shape, figures in content["held_out"].items()}
    log_result(job, len(history), rates)
    return _pushed(job, Report(content, unmeasured))


def _pushed(job: Job, report: Report) -> Report:
    """The report after the upload, if it is asked for."""
    if job.push_to_hub is None:
        return report
    try:
        return replace(report, address=push(job.out_dir, job.push_to_hub, private=job.hub_private))
    except HubError as problem:
        return replace(report, not_pushed=str(problem))


def history_of(folder: Path) -> dict[str, Any]:
    """How the drafter in `folder`, to start from, was trained: those of its `training.json`'s keys that say so."""
    report = read_provenance(folder)
    return {"name": folder.resolve().name} | {key: report[key] for key in HISTORY if key in report}


def tail_means(history: list[StepFigures]) -> dict[str, object]:
    """Means over the last steps: the figures of a single batch are noisy."""
    tail = history[-TAIL:]
    return {
        "loss": sum(f.loss for f in tail) / len(tail),
        "loss_by_depth": [sum(column) / len(tail) for column in zip(*(f.loss_by_depth for f in tail), strict=True)],
        "agreement_by_depth": [sum(column) / len(tail) for column in zip(*(f.agreement for f in tail), strict=True)],
    }
