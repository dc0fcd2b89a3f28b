# SPDX-License-Identifier: Apache-2.0
"""Drawings of a training's figures over its steps.

Training loss and held-out divergence are different measures and have separate axes. Agreement is the same measure on
both texts and has one.
"""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from redrafter_training.trainer.gradients import StepFigures


def smooth(values: Tensor, width: int) -> Tensor:
    """Mean over the last `width` values, fewer at the beginning. [n] -> [n]"""
    sums = torch.cat([values.new_zeros(1), values.cumsum(0)])
    ends = torch.arange(1, len(values) + 1)
    starts = (ends - width).clamp(min=0)
    return (sums[ends] - sums[starts]) / (ends - starts)


Evaluations = Sequence[tuple[int, Mapping[str, float]]]


def _smoothed(values: Sequence[float], width: int) -> Tensor:
    return smooth(torch.tensor(values, dtype=torch.float64), width)


def _series(evaluations: Evaluations, name: str) -> tuple[list[int], list[float]]:
    """Steps and values of one figure; a checkpoint of an earlier version may lack it."""
    points = [(step, figures[name]) for step, figures in evaluations if name in figures]
    return [step for step, _ in points], [value for _, value in points]


def plot_training(history: Sequence[StepFigures], evaluations: Evaluations, path: Path) -> bool:
    """Writes a PNG to `path`; False if there are no steps or matplotlib is not installed."""
    if not history or find_spec("matplotlib") is None:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    figures_by_depth(history, evaluations).savefig(path, dpi=120)
    return True


def figures_by_depth(history: Sequence[StepFigures], evaluations: Evaluations) -> Any:
    """Training loss, held-out divergence and agreement by depth, side by side: a matplotlib `Figure`.

    Args:
        history: at least one step.
        evaluations: (step, named figures), as in `Progress`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(16, 4.5), layout="constrained")
    trained, held_out, agreeing = figure.subplots(1, 3)
    steps = torch.arange(1, len(history) + 1)
    width = max(1, len(history) // 50)
    for depth in range(1, len(history[0].loss_by_depth) + 1):
        style: dict[str, Any] = {"color": f"C{depth - 1}", "label": f"depth {depth}"}
        losses = [figures.loss_by_depth[depth - 1] for figures in history]
        trained.plot(steps, _smoothed(losses, width), linewidth=1.2, **style)
        held_out.plot(*_series(evaluations, f"redrafter{depth}_kl"), "o-", markersize=4, linewidth=0.8, **style)
        agreements = [figures.agreement[depth - 1] for figures in history]
        agreeing.plot(steps, _smoothed(agreements, width), linewidth=1.2, **style)
        agreeing.plot(*_series(evaluations, f"redrafter{depth}_top1"), "o", color=style["color"], markersize=4)
    trained.set(title="training loss by depth, as configured", ylabel="loss, nats")
    held_out.set(title="held-out text: KL from the target at temperature 1", ylabel="KL divergence, nats")
    agreeing.set(title="top-1 token agrees with the target's", ylabel="fraction of positions", ylim=(0, 1))
    for axes in (trained, held_out):
        axes.set_ylim(bottom=0)
    for axes in (trained, held_out, agreeing):
        axes.set(xlabel="step", xlim=(0, len(history) + 1))
        axes.grid(alpha=0.3)
    agreeing.legend(title=f"line: batches, mean of {width}\ndot: held-out text", loc="upper left", fontsize=9)
    return figure


COURSE = {
    "train/learning_rate": "learning rate",
    "train/gradient_norm": "gradient norm before clipping",
    "train/tokens_per_second": "training tokens per second",
}


def course_figure(course: Evaluations) -> Any:
    """Learning rate, gradient norm and throughput of the log's entries, side by side: a matplotlib `Figure`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(16, 3.5), layout="constrained")
    for axes, (name, title) in zip(figure.subplots(1, len(COURSE)), COURSE.items(), strict=True):
        axes.plot(*_series(course, name), linewidth=1.2, color="C0")
        axes.set(title=title, xlabel="step", xlim=(0, course[-1][0] + 1))
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    return figure
