# SPDX-License-Identifier: Apache-2.0
"""The parts of a page: texts are escaped, a drawing is inside it and refers to nothing outside."""

from html.parser import HTMLParser
from pathlib import Path

import pytest

from redrafter_vllm.utils import html_page
from tests import browser

NASTY = '<script>alert("&")</script>'


class Texts(HTMLParser):
    """The tags of a page, and what is between them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append(data.strip())


def test_texts_are_escaped_everywhere() -> None:
    parts = [
        html_page.heading(NASTY),
        html_page.paragraph(NASTY, note=True),
        html_page.preformatted(NASTY),
        html_page.facts_table({NASTY: NASTY}),
        html_page.figures_table([NASTY, "b"], [[NASTY, 1.5]]),
    ]
    found = Texts(html_page.page(NASTY, parts))
    assert "script" not in found.tags
    assert found.texts.count(NASTY) == 9  # title and heading of the page among them
    assert "1.5" in found.texts
    assert found.tags.count("tr") == 3


def test_a_drawing_is_part_of_the_page() -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is part of the training package")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4, 3))
    axes = figure.subplots()
    axes.plot([1, 2, 3], [3, 1, 2])
    axes.set_title("loss < 3")
    found = Texts(html_page.page("drawn", [html_page.drawing(figure, 'a "loss"')]))
    assert "loss < 3" in found.texts  # as text, which can be searched
    assert ("aria-label", 'a "loss"') in found.attributes
    assert found.tags.count("svg") == 1 and "image" not in found.tags
    outside = [value for name, value in found.attributes if name in ("href", "src", "xlink:href")]
    assert all(value is not None and value.startswith("#") for value in outside)


@browser.needs_browser
@pytest.mark.process
def test_a_browser_shows_it(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is part of the training package")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(20, 3))  # wider than the page
    figure.subplots().plot([1, 2], [1, 2], color="#ff0000", linewidth=4)
    path = tmp_path / "page.html"
    table = html_page.figures_table(["depth", "agrees"], [[1, "71.5%"]])
    path.write_text(html_page.page(NASTY, [html_page.drawing(figure, "a line"), table]), encoding="utf-8")
    shown = browser.visible_text(path).splitlines()
    assert shown[0] == NASTY and shown[-3:] == ["a line", "depth\tagrees", "1\t71.5%"]
    places = "[...document.querySelectorAll('svg, body, td')].map(found => found.getBoundingClientRect().toJSON())"
    body, svg, first, _ = browser.measured(path, places)
    assert svg["right"] <= body["right"] and svg["height"] > 50
    assert first["top"] > svg["bottom"]
    red = (browser.screenshot(path) == [255, 0, 0]).all(-1)
    rows, columns = red.nonzero()
    assert len(rows) > 500
    assert rows.min() > svg["top"] and rows.max() < svg["bottom"] and columns.max() < svg["right"]
