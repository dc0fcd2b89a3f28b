# SPDX-License-Identifier: Apache-2.0
"""Tables that are shown in a terminal and stored as Markdown, and plots beside them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from redrafter_vllm.checkpoint.card import markdown_table

DEPTHS = 7  # columns of acceptance by depth that fit a terminal: copies of the text may be longer


@dataclass(frozen=True)
class Grid:
    """A table: rows of texts, the first `left` columns to the left and the others to the right.

    A line break in the title of a column is for terminals.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int = 1

    def __post_init__(self) -> None:
        if any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError(f"every row of {self.title!r} needs {len(self.columns)} cells")

    def rich(self) -> Table:
        """For a terminal."""
        table = Table(title=self.title, title_justify="left")
        for number, column in enumerate(self.columns):
            # A figure that does not fit goes on in the next line: cut, it would be another figure.
            table.add_column(column, justify="left" if number < self.left else "right", overflow="fold")
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        """A Markdown table under its title."""
        return f"**{self.title}**\n\n{markdown_table(self.plain_columns, self.rows)}\n"

    @property
    def plain_columns(self) -> list[str]:
        """The titles of the columns without line breaks."""
        return [column.replace("-\n", "-").replace("\n", " ") for column in self.columns]


def figure(value: float | None, form: str = ".2f") -> str:
    """A number in a cell, a dash for none."""
    return "–" if value is None else format(value, form)


def drawn(draw: Callable[[Any], None], size: tuple[float, float] = (10, 5)) -> Any:
    """The matplotlib `Figure`, of `size` inches, on whose axes `draw` has drawn; None without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return None
    drawing = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(drawing)
    draw(drawing.subplots())
    return drawing


def plot(path: Path, draw: Callable[[Any], None]) -> list[Path]:
    """The PNG that `draw` made on matplotlib's axes; none where matplotlib is not installed."""
    if (drawing := drawn(draw)) is None:
        return []
    drawing.savefig(path, dpi=120)
    return [path]
