# SPDX-License-Identifier: Apache-2.0
"""Exported files, read by parsers of their formats."""

import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from redrafter_vllm.watch import gif
from redrafter_vllm.watch.export import HOLD_SECONDS, Exporter, ExportError, check_export
from tests.browser import measured, needs_browser
from tests.watch.stories import race

SLOWER = 5  # 0.4 s are shown in 2 s: 20 frames at ten a second, and the last one


@pytest.fixture
def exporter() -> Exporter:
    return Exporter(race(), 120, 20, SLOWER)


def test_svg_is_the_end_of_the_faster_side(exporter: Exporter, tmp_path: Path) -> None:
    exporter.save(tmp_path / "watch.svg")
    tree = ElementTree.parse(tmp_path / "watch.svg")
    texts = "".join(tree.getroot().itertext()).replace("\xa0", " ")
    assert "0.30 s" in texts and "slower" not in texts
    assert "13.3 tokens/s" in texts and "4 tokens, 4 steps, 0.30 s" in texts
    assert not re.search(r"font-face|url\(.?http", (tmp_path / "watch.svg").read_text())
    fills = {element.get("fill") for element in tree.iter("{http://www.w3.org/2000/svg}rect")}
    assert {"#a6e3a1", "#74c7ec"} <= fills


class Page(HTMLParser):
    """The texts of the frames, and whether elements close in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.frames: list[str] = []
        self.shown: list[int] = []
        self.script = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("meta", "input"):
            return
        self.open.append(tag)
        if tag == "pre":
            if dict(attrs).get("class") == "shown":
                self.shown.append(len(self.frames))
            self.frames.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "pre" in self.open:
            self.frames[-1] += data
        elif self.open and self.open[-1] == "script":
            self.script += data


def test_html_has_all_frames(exporter: Exporter, tmp_path: Path) -> None:
    exporter.save(tmp_path / "watch.html")
    page = Page()
    page.feed((tmp_path / "watch.html").read_text())
    assert page.open == [] and len(page.frames) == 21 and page.shown == [20]
    assert "0.00 s" in page.frames[0] and "5 times slower" in page.frames[0]
    assert "The sky▌" in page.frames[5] and "│  ├─ ' is' ✓" in page.frames[8]
    assert "ReDrafter: 1.33 times plain decoding." in page.frames[20]
    durations = re.search(r"durations = \[(.*?)\]", page.script)
    assert durations is not None
    assert [int(number) for number in durations[1].split(",")] == [100] * 20 + [1000 * int(HOLD_SECONDS)]


FRAMES = "[...document.querySelectorAll('pre')]"
# The places of the frames that take room, and what a reader sees of the page.
SEEN = f"[{FRAMES}.flatMap((frame, at) => frame.offsetHeight ? [at] : []), document.body.innerText]"


@needs_browser
@pytest.mark.process
def test_the_page_plays_in_a_browser(exporter: Exporter, tmp_path: Path) -> None:
    """The page starts from the beginning by itself; the slider shows any frame, and playing goes on to the last one."""
    exporter.save(tmp_path / "watch.html")
    shown, text = measured(tmp_path / "watch.html", SEEN)
    assert shown == [0] and "0.00 s" in text and "pause" in text
    drag = "place.value = 8, place.oninput()"
    shown, text = measured(tmp_path / "watch.html", f"({drag}, {SEEN})")
    assert shown == [8] and "│  ├─ ' is' ✓" in text and "play" in text
    # As long as nothing drags it, each frame follows by a timer of its duration.
    steps = "for (let left = 40; left; left--) next()"
    shown, text = measured(tmp_path / "watch.html", f"(() => {{ {steps}; return {SEEN} }})()")
    assert shown == [20] and "ReDrafter: 1.33 times plain decoding." in text and "play" in text


@pytest.mark.skipif(gif.find_font() is None, reason="a GIF needs Pillow and DejaVu Sans Mono")
def test_gif_moves(exporter: Exporter, tmp_path: Path) -> None:
    from PIL import Image

    exporter.save(tmp_path / "watch.gif")
    picture = Image.open(tmp_path / "watch.gif")
    durations = []
    for frame in range(picture.n_frames):
        picture.seek(frame)
        durations.append(picture.info["duration"])
    assert picture.n_frames > 5 and sum(durations) == 2000 + 1000 * HOLD_SECONDS
    assert picture.info["loop"] == 0  # for ever
    # The upper left corner of a character's cell, behind it: `The sky is` begins in column 44 of line 4.
    picture.seek(picture.n_frames - 1)
    shown = picture.convert("RGB")
    column, line = round(gif.find_font().getlength("M")), sum(gif.find_font().getmetrics())
    colours = [shown.getpixel((gif.MARGIN + at * column, gif.MARGIN + 3 * line)) for at in (44, 47, 51)]
    assert colours == [(41, 41, 41), (0xA6, 0xE3, 0xA1), (0x74, 0xC7, 0xEC)]


def test_another_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"must end in .svg, .gif, .html"):
        check_export(tmp_path / "watch.png")


def test_a_gif_without_its_font_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("redrafter_vllm.watch.export.find_font", lambda: None)
    with pytest.raises(ExportError, match="needs Pillow and the font"):
        check_export(tmp_path / "watch.gif")
