# SPDX-License-Identifier: Apache-2.0
"""After the last step: the drafter is exported first, then evaluated."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from redrafter_training.config.job import Job
from redrafter_training.config.recipe import DistillConfig
from redrafter_training.distributed import checkpoints
from redrafter_training.run.evaluation import EXPORT_DTYPE, HeldOutFigures
from redrafter_training.trainer.export import export, update_report
from redrafter_training.trainer.loop import StepFigures
from redrafter_training.trainer.plots import plot_training
from redrafter_training.trainer.state import read_state
from redrafter_training.utils.provenance import provenance
from redrafter_training.utils.run_folder import run_name
from redrafter_vllm.adaptive.stored import CALIBRATION
from redrafter_vllm.checkpoint.config import DrafterConfig
from redrafter_vllm.model.drafter import Drafter
from redrafter_vllm.utils.messages import sentence

TAIL = 50  # steps

Evaluate = Callable[[Drafter, Sequence[Tensor]], HeldOutFigures]


@dataclass(frozen=True)
class Outcome:
    """The result of the training processes."""

    drafter_config: dict[str, Any]
    facts: dict[str, object]  # about the data
    prompts: list[Tensor]  # held out, for the final evaluation


@dataclass(frozen=True)
class Report:
    """The content of `training.json`, and the reason if the final evaluation failed."""

    content: dict[str, Any]
    unmeasured: str | None = None


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
    drafter.load_state_dict(state["drafter"])
    content = provenance("redrafter_training") | {
        "run": run_name(job.run_folder),
        "recipe": recipe,
        "target": job.target,
        "target_content": dict(target),
        "data": outcome.facts,
        "config": asdict(config),
        "parameters": sum(p.numel() for p in drafter.parameters()),
        "steps": len(history),
        "training": tail_means(history),
        "metrics": evaluations[-1][1] if evaluations else {},
        "held_out": {},
        "seconds": round(time.monotonic() - started),
    }
    plot_training(history, evaluations, job.run_folder / "training.png")
    export(drafter, job.out_dir, content, EXPORT_DTYPE, overwrite=job.overwrite)
    if not job.evaluate:
        return Report(content)
    try:
        measured = evaluate(drafter, outcome.prompts)
    except Exception as problem:  # of any type: the drafter is exported already
        return Report(content, f"{type(problem).__name__}: {sentence(problem)}")
    content["held_out"] = measured.tokens_per_step
    content[CALIBRATION] = asdict(measured.calibration)
    content["seconds"] = round(time.monotonic() - started)
    update_report(job.out_dir, content)
    return Report(content)


def tail_means(history: list[StepFigures]) -> dict[str, object]:
    """Means over the last steps: the figures of a single batch are noisy."""
    tail = history[-TAIL:]
    return {
        "loss": sum(f.loss for f in tail) / len(tail),
        "loss_by_depth": [sum(column) / len(tail) for column in zip(*(f.loss_by_depth for f in tail), strict=True)],
        "agreement_by_depth": [sum(column) / len(tail) for column in zip(*(f.agreement for f in tail), strict=True)],
    }
