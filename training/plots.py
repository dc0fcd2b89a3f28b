# SPDX-License-Identifier: Apache-2.0
"""Loss and agreement by depth over the steps of a training, as a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from training.loop import StepFigures


def smooth(values: Tensor, width: int) -> Tensor:
    """Mean over the last `width` values, or as many as there are. [n] -> [n]"""
    sums = torch.cat([values.new_zeros(1), values.cumsum(0)])
    ends = torch.arange(1, len(values) + 1)
    starts = (ends - width).clamp(min=0)
    return (sums[ends] - sums[starts]) / (ends - starts)


Evaluations = Sequence[tuple[int, Mapping[str, float]]]


def plot_training(history: Sequence[StepFigures], evaluations: Evaluations, path: Path) -> bool:
    """Writes a PNG to `path`; False when there is nothing to show or matplotlib is not installed.

    Args:
        evaluations: (step, named figures), as `Progress` keeps them.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    if not history:
        return False
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    steps = torch.arange(1, len(history) + 1)
    width = max(1, len(history) // 50)
    evaluated = [step for step, _ in evaluations]
    for depth in range(1, len(history[0].loss_by_depth) + 1):
        colour = f"C{depth - 1}"
        for axes, column, name in (
            (left, [figures.loss_by_depth[depth - 1] for figures in history], f"redrafter{depth}_loss"),
            (right, [figures.agreement[depth - 1] for figures in history], f"redrafter{depth}_top1"),
        ):
            values = torch.tensor(column, dtype=torch.float64)
            axes.plot(steps, smooth(values, width), color=colour, linewidth=1.2, label=f"depth {depth}")
            held_out = [figures.get(name) for _, figures in evaluations]
            if held_out and None not in held_out:
                axes.plot(evaluated, held_out, "o", color=colour, markersize=4)
    left.set(title="loss by depth (line: as trained; dot: KL at temperature 1)", xlabel="step", ylabel="loss, nats")
    left.set_ylim(bottom=0)
    right.set(title="favourite token agrees with the target's", xlabel="step", ylabel="fraction of positions")
    right.set_ylim(0, 1)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    right.legend(title=f"line: batches, mean of {width}\ndot: held-out text", loc="upper left", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return True
