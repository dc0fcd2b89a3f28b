# SPDX-License-Identifier: Apache-2.0
"""Draws the panels of a dashboard in its grid."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.pictures.browser import save_small
from tools.pictures.dashboard import COLUMNS, Panel
from tools.pictures.prometheus import Series

WIDTH = 1200  # pixels of the picture
LINE, GAP = 26, 12  # pixels: a line of Grafana's grid, between two panels
HEAD = 46  # above the panels
DPI = 100
BACKGROUND, CARD, EDGE, TEXT, PALE = "#f4f5f5", "#ffffff", "#d4d9e2", "#1c2330", "#5b6577"
COLOURS = ("#3f9a58", "#d9a514", "#2f72c4", "#d2562f", "#8b5cc7", "#149bb0", "#b04a86", "#6b7280")
# Pixels of a panel around its curves.
LEFT, RIGHT, ABOVE, BELOW = 58, 16, 36, 52


@dataclass(frozen=True)
class Curve:
    """A series with its name in the legend."""

    name: str
    series: Series


@dataclass(frozen=True)
class Span:
    """The time that is shown, in Unix seconds, and the distance of two values."""

    begin: float
    end: float
    step: float

    def line(self, series: Series) -> tuple[list[float], list[float]]:
        """Minutes since the begin and values; NaN, a gap, where there is no value."""
        times = [self.begin + index * self.step for index in range(int((self.end - self.begin) // self.step) + 1)]
        found = {round(at, 3): value for at, value in series.values.items()}
        return [(at - self.begin) / 60 for at in times], [found.get(round(at, 3), math.nan) for at in times]


def draw(panels: Sequence[tuple[Panel, Sequence[Curve]]], span: Span, title: str, note: str, picture: Path) -> None:
    """Write the panels as PNG, with a title above them and, at its right, a note."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = max(panel.top + panel.height for panel, _ in panels)
    height = HEAD + lines * LINE + GAP
    figure = Figure(figsize=(WIDTH / DPI, height / DPI), dpi=DPI, facecolor=BACKGROUND)
    FigureCanvasAgg(figure)
    figure.text(GAP / WIDTH, 1 - 16 / height, title, size=13, weight="bold", color=TEXT, va="top")
    figure.text(1 - GAP / WIDTH, 1 - 18 / height, note, size=9, color=PALE, va="top", ha="right")
    for panel, curves in panels:
        _draw_panel(figure, height, panel, curves, span)
    picture.parent.mkdir(parents=True, exist_ok=True)
    taken = picture.with_suffix(".full.png")
    try:
        figure.savefig(taken, dpi=DPI, facecolor=BACKGROUND)
        save_small(taken, picture)
    finally:
        taken.unlink(missing_ok=True)


def is_shown(curve: Curve) -> bool:
    """Whether the curve has at least one value."""
    return any(math.isfinite(value) for value in curve.series.values.values())


def _draw_panel(figure: Any, height: int, panel: Panel, curves: Sequence[Curve], span: Span) -> None:
    column = (WIDTH - GAP) / COLUMNS
    left, top = GAP + panel.left * column, HEAD + panel.top * LINE
    width, tall = panel.width * column - GAP, panel.height * LINE - GAP

    def placed(x: float, y: float, w: float, h: float) -> tuple[float, float, float, float]:
        """Of matplotlib's figure, which counts from the bottom, in parts of it."""
        return x / WIDTH, 1 - (y + h) / height, w / WIDTH, h / height

    card = figure.add_axes(placed(left, top, width, tall), facecolor=CARD, xticks=[], yticks=[])
    for edge in card.spines.values():
        edge.set_color(EDGE)
    card.text(
        10 / width, 1 - 9 / tall, panel.title, size=10.5, weight="bold", color=TEXT, va="top", transform=card.transAxes
    )
    axes = figure.add_axes(
        placed(left + LEFT, top + ABOVE, width - LEFT - RIGHT, tall - ABOVE - BELOW), facecolor="none"
    )
    shown = [curve for curve in curves if is_shown(curve)]
    for index, curve in enumerate(shown):
        minutes, values = span.line(curve.series)
        axes.plot(minutes, values, color=COLOURS[index % len(COLOURS)], linewidth=1.5, label=curve.name)
    _frame(axes, panel, span)
    if shown:
        # Names below the curves, from the left.
        handles, labels = axes.get_legend_handles_labels()
        card.legend(
            handles,
            labels,
            loc="lower left",
            bbox_to_anchor=(0.01, -0.01),
            ncol=len(shown),
            frameon=False,
            fontsize=8.5,
            handlelength=1.2,
            columnspacing=1.4,
            labelcolor=PALE,
        )
    else:
        axes.text(0.5, 0.5, "No data", ha="center", va="center", color=PALE, size=11, transform=axes.transAxes)


def _frame(axes: Any, panel: Panel, span: Span) -> None:
    """Ends of the axes, and numbers in the panel's unit."""
    axes.set_xlim(0, (span.end - span.begin) / 60)
    axes.set_ylim(panel.low, panel.high)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g} min")
    axes.yaxis.set_major_formatter(lambda value, _: formatted(value, panel.unit))
    axes.grid(color=EDGE, linewidth=0.6)
    axes.tick_params(labelsize=8.5, colors=PALE, length=0, pad=6)
    for edge in axes.spines.values():
        edge.set_visible(False)


def formatted(value: float, unit: str) -> str:
    """A number in one of Grafana's units."""
    if unit == "percentunit":
        return f"{100 * value:g}%"
    return f"{value / 1000:g} K" if abs(value) >= 1000 else f"{value:g}"
