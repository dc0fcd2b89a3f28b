# SPDX-License-Identifier: Apache-2.0
"""The report of a training, as a browser shows it."""

import json
from pathlib import Path
from typing import Any

import pytest

from redrafter_training.__main__ import main
from redrafter_training.run.report_page import training_page
from redrafter_training.trainer.gradients import StepFigures
from tests import browser
from tests.training.small_command import ASSET, small_command, write_data

HISTORY = [StepFigures(4.0 - step / 10, (4.0 - step / 10, 5.0 - step / 10), (0.1, 0.05)) for step in range(10)]
EVALUATED = {f"redrafter{depth}_top{k}": 0.1 * k + 0.01 * depth for depth in (1, 2) for k in range(1, 6)}
EVALUATED |= {"redrafter1_kl": 1.5, "redrafter2_kl": 2.5}
COURSE = [
    (step, {"train/learning_rate": 0.01, "train/gradient_norm": 2.0 / step, "train/tokens_per_second": 900.0})
    for step in (5, 10)
]
REPORT: dict[str, Any] = {
    "target": "org/<model>",
    "target_content": {"weights": "0123abcd"},
    "data": {"data": "chats.json", "training": 1200, "held_out": 60},
    "config": {"batch_size": 4, "window": 256, "seed": 3},
    "steps": 10,
    "epochs": 1.25,
    "best_step": 8,
    "training": {"loss": 3.1},
    "metrics": EVALUATED,
    "held_out": {"4x2": {"tokens_per_step": 1.875, "acceptance_by_depth": [0.6, 0.275]}},
    "versions": {"python": "3.11.7", "torch": "2.9"},
    "command": "python -m redrafter_training --target 'org/<model>'",
    "recipe": "short",
    "run": "feedbeef",
    "parameters": 1234567,
    "seconds": 4321,
}


@pytest.fixture
def page(tmp_path: Path) -> Path:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    path = tmp_path / "report.html"
    evaluations = [(5, {**EVALUATED, "redrafter1_kl": 1.9}), (10, EVALUATED)]
    text = training_page(REPORT, HISTORY, evaluations, COURSE, "max_steps: 10\nwindow: 256\n")
    path.write_text(text, encoding="utf-8")
    return path


@browser.needs_browser
@pytest.mark.process
def test_what_a_reader_sees(page: Path) -> None:
    lines = browser.visible_text(page).splitlines()
    assert lines[0] == "Training of a drafter for org/<model>"
    for row in (
        "1\t1.500\t11.0%\t21.0%\t31.0%\t41.0%\t51.0%",
        "4x2\t1.88\t60%\t28%",
        "passes over the data\t1.25",
        "weights of\tstep 8, the best evaluation",
        "texts to train on\t1,200",
        "target's weights\t0123abcd",
        "torch\t2.9",
        "command\tpython -m redrafter_training --target 'org/<model>'",
        "max_steps: 10",
    ):
        assert row in lines, row
    # The drawings' texts are among them: training loss and held-out divergence have axes of their own.
    assert "training loss by depth, as configured" in lines
    assert "held-out text: KL from the target at temperature 1" in lines
    assert "gradient norm before clipping" in lines


@browser.needs_browser
@pytest.mark.process
def test_what_it_looks_like(page: Path) -> None:
    """Two drawings within the page's width, one below the other, with lines in them; tables below."""
    places = browser.measured(
        page,
        "[...document.querySelectorAll('body, svg, .figures')].map(found => found.getBoundingClientRect().toJSON())",
    )
    body, by_depth, course, agreement, drafting = places
    assert by_depth["width"] > 0.8 * body["width"] and by_depth["right"] <= body["right"]
    assert by_depth["bottom"] <= course["top"] < course["bottom"] <= agreement["top"] < drafting["top"]
    picture = browser.screenshot(page).astype(int)
    # Rows of the pixels of depth 1's lines; one that is drawn across two rows of pixels is pale.
    blue = (picture[..., 2] - picture[..., 0] > 40).nonzero()[0]
    for drawn in (by_depth, course):
        assert ((blue > drawn["top"]) & (blue < drawn["bottom"])).sum() > 150


def test_an_earlier_version_stored_less(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    old = {key: value for key, value in REPORT.items() if key not in ("epochs", "best_step")}
    text = training_page(old | {"held_out": {}, "metrics": {}}, HISTORY, [], [], "")
    assert text.count("<svg") == 1 and "Tokens per step on" not in text


@pytest.mark.slow
def test_a_training_leaves_it_in_the_folder_of_its_run(tmp_path: Path) -> None:
    more = ("--max-steps", "2", "--log-every", "1", "--evaluate-every", "1")
    assert main(small_command(ASSET, write_data(tmp_path / "data.json"), tmp_path / "out", *more)) == 0
    text = (tmp_path / "out.run" / "report.html").read_text(encoding="utf-8")
    report = json.loads((tmp_path / "out" / "training.json").read_text())
    assert f"<td>{report['run']}</td>" in text and "max_steps: 2" in text
    assert text.count("<svg") == 2 and "http-equiv" not in text
