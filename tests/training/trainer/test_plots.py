# SPDX-License-Identifier: Apache-2.0
"""The plot of a training: which figures are on which axes."""

from pathlib import Path
from typing import Any

import pytest

from redrafter_training.trainer.gradients import StepFigures
from redrafter_training.trainer.plots import plot_training

pytest.importorskip("matplotlib", reason="matplotlib is not installed (the `train` extra)")

HISTORY = [StepFigures(4.0 - step / 10, (4.0 - step / 10, 5.0 - step / 10), (0.1, 0.05)) for step in range(10)]
OLD = {"redrafter1_loss": 1.0}  # as a checkpoint of an earlier version has it
EVALUATIONS = [
    (2, OLD),
    (5, {"redrafter1_kl": 1.5, "redrafter2_kl": 2.5, "redrafter1_top1": 0.3, "redrafter2_top1": 0.2}),
    (10, {"redrafter1_kl": 1.25, "redrafter2_kl": 2.25, "redrafter1_top1": 0.4, "redrafter2_top1": 0.3}),
]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """The axes of the plot, left to right."""
    from matplotlib.figure import Figure

    figures: list[Figure] = []
    save = Figure.savefig

    def remember(figure: Figure, *args: Any, **options: Any) -> None:
        figures.append(figure)
        save(figure, *args, **options)

    monkeypatch.setattr(Figure, "savefig", remember)
    assert plot_training(HISTORY, EVALUATIONS, tmp_path / "training.png")
    assert (tmp_path / "training.png").stat().st_size > 1000
    return figures[0].axes


def values(axes: Any) -> list[list[float]]:
    return [[float(y) for y in line.get_ydata()] for line in axes.get_lines()]


def test_training_loss_and_held_out_divergence_have_separate_axes(drawn: list[Any]) -> None:
    trained, held_out, _ = drawn
    assert values(trained)[0] == pytest.approx([4.0 - step / 10 for step in range(10)])
    assert values(held_out) == [[1.5, 1.25], [2.5, 2.25]]
    assert "training loss" in trained.get_title() and "loss" in trained.get_ylabel()
    assert "held-out" in held_out.get_title() and "KL" in held_out.get_ylabel()


def test_agreement_is_one_measure_on_both_texts(drawn: list[Any]) -> None:
    assert values(drawn[2]) == [pytest.approx([0.1] * 10), [0.3, 0.4], pytest.approx([0.05] * 10), [0.2, 0.3]]


def test_nothing_to_show(tmp_path: Path) -> None:
    assert not plot_training([], [], tmp_path / "training.png")
    assert not (tmp_path / "training.png").exists()
