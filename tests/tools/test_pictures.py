# SPDX-License-Identifier: Apache-2.0
"""The pictures of the documents: which there are, the browser, and the dashboard drawn from hand-made answers."""

import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from redrafter_vllm.watch.pair import chat_pair
from tests.deploy.tools import DASHBOARD
from tests.paths import ROOT
from tools.pictures import __main__ as pictures
from tools.pictures import pages
from tools.pictures.browser import find_browser, take_picture
from tools.pictures.dashboard import Panel, Query, rate_interval, read_panels
from tools.pictures.errors import PictureError
from tools.pictures.panels import Curve, Span, draw, formatted, is_shown
from tools.pictures.prometheus import Series

SHOWN = re.compile(r"!\[([^\]]+)\]\((?:\.\./|docs/)*assets/([\w.-]+)\)")
MOST_BYTES = {".png": 150_000, ".gif": 300_000}
WHITE, GREEN = (255, 255, 255), (63, 154, 88)


def test_every_picture_is_there_small_and_shown() -> None:
    documents = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    shown = {file for document in documents for _, file in SHOWN.findall(document.read_text(encoding="utf-8"))}
    here = {path.name: path for path in (ROOT / "docs" / "assets").iterdir() if path.is_file()}
    assert set(pictures.PICTURES) == set(here) == shown
    for path in here.values():
        assert path.stat().st_size <= MOST_BYTES[path.suffix], path


def test_an_unknown_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        pictures.main(["portrait"])
    assert "there is no picture portrait: choose from front_page, trees" in capsys.readouterr().err


def test_without_the_chat_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REDRAFTER_HOME", str(tmp_path))
    assert pictures.main(["trees"]) == 1
    assert "redrafter fetch-smollm2" in capsys.readouterr().err


def test_a_benchmark_is_measured_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With complete rounds in its folder, `redrafter bench` would measure nothing."""
    earlier = tmp_path / "benchmark" / "rounds.jsonl"
    earlier.parent.mkdir()
    earlier.touch()
    there: list[bool] = []
    monkeypatch.setattr(pages, "WORK", tmp_path)
    monkeypatch.setattr(pages, "find_browser", lambda: "browser")
    monkeypatch.setattr(pages, "redrafter", lambda *given: there.append(earlier.exists()))
    monkeypatch.setattr(pages, "take_picture", lambda *given: None)
    pages.benchmark(chat_pair(pages.MODELS), tmp_path / "benchmark.png")
    assert there == [False]


def test_a_picture_needs_a_browser(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(PictureError, match="A picture needs a browser"):
        find_browser()


@pytest.mark.process
def test_a_browser_that_writes_nothing(tmp_path: Path) -> None:
    browser = tmp_path / "browser"
    browser.write_text(f"#!{sys.executable}\nimport sys\nsys.exit('no screen')\n")
    browser.chmod(0o755)
    with pytest.raises(PictureError, match="has written no picture: no screen"):
        take_picture(str(browser), "http://x", tmp_path / "x.png", 40, 30)
    assert not (tmp_path / "x.png").exists()


@pytest.mark.process
def test_a_page_becomes_a_picture(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    try:
        browser = find_browser()
    except PictureError as missing:
        pytest.skip(str(missing))
    page = tmp_path / "page.html"
    page.write_text('<body style="margin:0"><div style="background:rgb(63,154,88);width:50px;height:1000px"></div>')
    take_picture(browser, page.as_uri(), tmp_path / "new" / "page.png", 800, 600)
    taken = image.open(tmp_path / "new" / "page.png").convert("RGB")
    assert taken.size == (800, 600) and taken.getpixel((20, 300)) == GREEN and taken.getpixel((150, 300)) == WHITE


def test_panels_are_those_of_the_dashboard() -> None:
    titles = [panel["title"] for panel in json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]]
    panels = read_panels()
    assert [panel.title for panel in panels] == titles
    first = panels[0]
    assert (first.unit, first.low, first.high) == ("short", 1, None)
    assert (first.left, first.top, first.width, first.height) == (0, 0, 12, 8)
    places = [(panel.left, panel.top) for panel in panels]
    assert len(set(places)) == len(places)


def test_what_grafana_fills_in() -> None:
    query = Query('sum by (depth) (rate(x{model_name=~"$model_name"}[$__rate_interval]))', "depth {{depth}}")
    assert query.with_variables("20s") == 'sum by (depth) (rate(x{model_name=~".*"}[20s]))'
    assert query.label({"depth": "3", "engine": "0"}) == "depth 3"
    with pytest.raises(PictureError, match="variable that is not known"):
        Query("x[$__range]", "").with_variables("20s")
    # Grafana: the larger of four readings, and a step with one reading.
    assert (rate_interval(5, 5), rate_interval(60, 5)) == ("20s", "65s")


def test_a_panel_that_cannot_be_drawn(tmp_path: Path) -> None:
    found: dict[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    found["panels"][2]["fieldConfig"]["defaults"]["unit"] = "bytes"
    (tmp_path / "other.json").write_text(json.dumps(found))
    with pytest.raises(PictureError, match="panel 'Nodes per tree' is no time series in one of the units"):
        read_panels(tmp_path / "other.json")


def test_a_curve_has_gaps_where_there_is_no_value() -> None:
    curve = Curve("a", Series({}, {100.0: 1.0, 105.0: math.nan, 115.0: 3.0}))
    minutes, values = Span(100.0, 119.0, 5.0).line(curve.series)
    assert minutes == [0, 5 / 60, 10 / 60, 15 / 60]
    assert values[0] == 1 and math.isnan(values[1]) and math.isnan(values[2]) and values[3] == 3
    assert is_shown(curve) and not is_shown(Curve("b", Series({}, {100.0: math.nan})))


def test_numbers_in_the_units_of_grafana() -> None:
    assert [formatted(value, "percentunit") for value in (0, 0.25, 1)] == ["0%", "25%", "100%"]
    assert [formatted(value, "short") for value in (0, 2.5, 1500)] == ["0", "2.5", "1.5 K"]


def test_the_drawing(tmp_path: Path) -> None:
    """Two panels side by side: a level line at half of the height, and nothing."""
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    level = Panel("level", "percentunit", 0, 1, 0, 0, 12, 8, ())
    empty = Panel("empty", "short", 0, None, 12, 0, 12, 8, ())
    times = [1000.0 + 5 * index for index in range(25)]
    curve = Curve("half", Series({}, dict.fromkeys(times, 0.5)))
    draw([(level, [curve]), (empty, [])], Span(1000.0, 1120.0, 5.0), "title", "note", tmp_path / "drawn.png")
    assert [path.name for path in tmp_path.iterdir()] == ["drawn.png"]
    picture = image.open(tmp_path / "drawn.png").convert("RGB")
    width, height = picture.size
    columns = ([y for y in range(height) if picture.getpixel((x, y)) == GREEN] for x in (width // 4, 3 * width // 4))
    line, nothing = columns
    assert 1 <= len(line) <= 4 and not nothing
    # The panel's curves are drawn between 36 and 52 pixels from its top and bottom.
    top, bottom = 46 + 36, 46 + 8 * 26 - 12 - 52
    assert abs(sum(line) / len(line) - (top + bottom) / 2) < 2
