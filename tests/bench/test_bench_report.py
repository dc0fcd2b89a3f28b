# SPDX-License-Identifier: Apache-2.0
"""The report: tables at 80 columns, Markdown, plots that are PNG, a page that a browser shows."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from redrafter_vllm.bench import report as reports
from redrafter_vllm.bench import tables
from redrafter_vllm.bench.figures import rows
from tests import browser
from tests.bench.example import NGRAM, OURS, PLAIN, report, turn

PNG = b"\x89PNG\r\n\x1a\n"


def shown(grid: tables.Grid, width: int = 80) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(grid.rich())
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


@pytest.mark.parametrize("number", range(6))
def test_tables_are_complete_at_80_columns(number: int) -> None:
    grid = reports.grids(report())[number]
    lines = shown(grid)
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    assert "…" not in text
    for row in grid.rows:
        assert any(all(cell in line for cell in row) for line in lines), f"{row} is no line of\n{text}"


def test_the_table_of_speeds() -> None:
    grid = reports.speeds(report())
    assert grid.rows[1] == ["", OURS, "16.0", "2.00", "1.20 – 2.20", "3.00", "2/2"]
    assert grid.rows[0][:4] == ["1", PLAIN, "7.6", "1.00"]
    assert grid.rows[3][0] == "16"


def test_the_other_tables() -> None:
    made = report()
    assert reports.drafts(made).rows[:3] == [
        ["1", PLAIN, "–", "–", "–"],
        ["", OURS, "4.00", "2.00", "25 %"],
        ["", NGRAM, "1.50", "0.00", "–"],
    ]
    assert reports.times(made).rows[0] == ["1", PLAIN, "200 280 298", "100 100 100", "1700 2180 2288"]
    assert reports.acceptance(made).rows == [[PLAIN, "–", "–"], [OURS, "0.80", "0.40"], [NGRAM, "–", "–"]]
    assert reports.steps(made).rows == [
        ["whole step", "20.00", "–", "20.00"],
        ["target: layers", "–", "20.00", "–"],
        ["draft", "–", "5.00", "–"],
        ["all", "20.00", "25.00", "20.00"],
    ]
    assert reports.memory(made).rows == [[PLAIN, "1.00"], [OURS, "1.50"], [NGRAM, "1.00"]]


def ramp_alone() -> reports.Report:
    turns = [turn(PLAIN, "1-4-1", 3.0), turn(OURS, "1-4-1", 2.0, acceptance=[0.5])]
    return replace(report(), rows=rows([turns], PLAIN), rounds=1)


def test_a_ramp_is_in_the_tables_and_not_in_the_plot_by_number() -> None:
    made = ramp_alone()
    assert [row[:4] for row in reports.speeds(made).rows] == [
        ["1-4-1", PLAIN, "10.7", "1.00"],
        ["", OURS, "16.0", "1.50"],
    ]
    assert reports.acceptance(made).title == "Acceptance by depth, 1-4-1 at a time"
    assert set(reports.drawings(made)) == {"acceptance"}
    assert max(map(len, shown(reports.speeds(made)))) <= 80


def test_a_figure_that_does_not_fit_is_not_cut() -> None:
    grid = tables.Grid("wide", ["name", "first", "second"], [["x", "1" * 30, "2" * 30]])
    text = "".join(shown(grid, 40))
    assert text.count("1") == 30 and text.count("2") == 30


def test_the_confidence_is_said() -> None:
    assert "a confidence of 75 %; 6 rounds would give 97 %" in reports.remarks(report())[0]


def test_files(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    written = reports.store(report(), tmp_path)
    images = {path.name for path in written if path.suffix == ".png"}
    assert images == {"speedup.png", "acceptance.png", "step-time.png"}
    for name in images:
        data = (tmp_path / name).read_bytes()
        assert data.startswith(PNG) and len(data) > 10_000
    stored = json.loads((tmp_path / "results.json").read_text())
    assert stored["results"][1]["speedup"]["median"] == 2.0 and stored["rounds"] == 3
    text = (tmp_path / "report.md").read_text()
    assert f"| {OURS} | 0.80 | 0.40 |" in text
    assert all(f"]({name})" in text for name in images)
    assert sorted(tmp_path.iterdir()) == sorted(written)


def test_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "drawn", lambda draw, size=(1, 1): None)
    written = reports.store(report(), tmp_path)
    assert [path.name for path in written] == ["results.json", "report.md", "report.html"]
    assert "![" not in (tmp_path / "report.md").read_text()


@pytest.mark.process
@browser.needs_browser
def test_the_page_in_a_browser(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    page = tmp_path / "report.html"
    page.write_text(reports.page(report()), encoding="utf-8")
    text = browser.visible_text(page)
    for expected in ("2 cores <of> something", OURS, "1.20 – 2.20", "redrafter bench offline models/some-target"):
        assert expected in text
    drawings = browser.measured(
        page, "[...document.querySelectorAll('svg')].map(s => [s.getBoundingClientRect().width, s.textContent])"
    )
    assert len(drawings) == 3 and all(400 < width <= 1200 for width, _ in drawings)
    assert "requests at a time" in drawings[0][1] and "depth of the draft" in drawings[1][1]
    widest = browser.measured(page, "document.documentElement.scrollWidth")
    assert widest <= browser.WIDTH
