# SPDX-License-Identifier: Apache-2.0
"""After the last step: the drafter is put in its place first, and measured then."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from redrafter_training.config.job import Job
from redrafter_training.config.recipe import DistillConfig
from redrafter_training.distributed import checkpoints
from redrafter_training.evaluate import Drafting, measure
from redrafter_training.responses.transformers_engine import continue_prompts
from redrafter_training.target.model import TargetModel
from redrafter_training.target.properties import facts_of
from redrafter_training.trainer.export import export, provenance, update_report
from redrafter_training.trainer.loop import StepFigures
from redrafter_training.trainer.plots import plot_training
from redrafter_training.trainer.state import read_state
from redrafter_training.utils.run_folder import run_name
from redrafter_vllm.checkpoint.config import DrafterConfig
from redrafter_vllm.model.drafter import Drafter
from redrafter_vllm.utils.messages import sentence

EXPORT_DTYPE = torch.bfloat16
EVALUATED_TOKENS = 96
TAIL = 50

TokensPerStep = dict[str, dict[str, Any]]  # by shape of the draft
Evaluate = Callable[[Drafter, Sequence[Tensor]], TokensPerStep]


@dataclass(frozen=True)
class Outcome:
    """What a finished training leaves to its launcher."""

    drafter_config: dict[str, Any]
    facts: dict[str, object]  # about the data
    prompts: list[Tensor]  # held out, for the final measure


@dataclass(frozen=True)
class Report:
    """What `training.json` holds, and why the final measure is missing in it, where it failed."""

    content: dict[str, Any]
    unmeasured: str | None = None


def finish(
    job: Job, config: DistillConfig, recipe: str, outcome: Outcome, evaluate: Evaluate, program: str, started: float
) -> Report:
    """Exports the drafter of the last checkpoint with its `training.json`, then measures it and adds what was found.

    Args:
        started: when, by the monotonic clock.

    Raises:
        PlaceError: the drafter's place has been taken meanwhile.
    """
    newest = checkpoints.latest(job.checkpoints)
    if newest is None:
        raise FileNotFoundError(f"the training left no checkpoint in {job.checkpoints}")
    state = read_state(newest)
    history = [StepFigures.from_row(row) for row in state["history"].tolist()]
    evaluations = state["evaluations"]
    drafter = Drafter(DrafterConfig(**outcome.drafter_config))
    drafter.load_state_dict(state["drafter"])
    content = provenance(program) | {
        "run": run_name(job.run_folder),
        "recipe": recipe,
        "target": job.target,
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
        content["held_out"] = evaluate(drafter, outcome.prompts)
    except Exception as problem:  # of any type: the drafter is there whatever it is
        return Report(content, f"{type(problem).__name__}: {sentence(problem)}")
    content["seconds"] = round(time.monotonic() - started)
    update_report(job.out_dir, content)
    return Report(content)


def tokens_per_step(
    target: TargetModel, drafter: Drafter, prompts: Sequence[Tensor], beam_length: int
) -> dict[str, dict[str, Any]]:
    """What greedy decoding of held-out prompts would gain from the drafter as it is exported, by shape of the draft."""
    rounded = drafter.to(EXPORT_DTYPE).to(target.device, target.embedding.dtype)
    chosen, new_tokens = fitting(prompts, facts_of("", target.model.config).longest)
    continued = continue_prompts(target, chosen, new_tokens)
    texts = [(text.to(target.device), len(prompt)) for text, prompt in zip(continued, chosen, strict=True)]
    shapes = [Drafting(width, beam_length, width * beam_length) for width in (1, 4)]
    return {f"{s.beam_width}x{s.beam_length}": asdict(measure(target, rounded, texts, s)) for s in shapes}


def fitting(prompts: Sequence[Tensor], longest: float) -> tuple[list[Tensor], int]:
    """The prompts that the target can continue within its `longest` text, and by how many tokens each."""
    new_tokens = int(min(EVALUATED_TOKENS, longest // 2))
    room = [prompt for prompt in prompts if len(prompt) + new_tokens <= longest]
    # Of prompts that all fill the window, as a target of few positions may leave none other, the ends are kept.
    return room or [prompt[-int(longest - new_tokens) :] for prompt in prompts], new_tokens


def tail_means(history: list[StepFigures]) -> dict[str, object]:
    """Means over the last steps, which one batch alone would leave noisy."""
    tail = history[-TAIL:]
    return {
        "loss": sum(f.loss for f in tail) / len(tail),
        "loss_by_depth": [sum(column) / len(tail) for column in zip(*(f.loss_by_depth for f in tail), strict=True)],
        "agreement_by_depth": [sum(column) / len(tail) for column in zip(*(f.agreement for f in tail), strict=True)],
    }
