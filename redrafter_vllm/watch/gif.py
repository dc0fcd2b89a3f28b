# SPDX-License-Identifier: Apache-2.0
"""Frames of a terminal as a moving picture."""

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from rich.terminal_theme import TerminalTheme

FONT, BOLD_FONT = "DejaVuSansMono.ttf", "DejaVuSansMono-Bold.ttf"
FONT_SIZE = 13  # pixels
MARGIN = 10
COLOURS = 256  # of a palette
SHADES = (0.0, 0.25, 0.5, 0.75, 1.0)  # between a character's colour and what is behind it, at its edges

Lines = list[list[Segment]]
Pixel = tuple[int, ...]  # red, green, blue


@cache
def find_font(name: str = FONT) -> Any:
    """The font, from the system's or from matplotlib's; None where there is none, or no Pillow."""
    try:
        from PIL import ImageFont
    except ImportError:
        return None
    for place in (name, _matplotlibs(name)):
        try:
            return ImageFont.truetype(str(place), FONT_SIZE)
        except OSError:
            continue
    return None


def save_gif(path: Path, frames: Sequence[tuple[float, Lines]], width: int, theme: TerminalTheme) -> None:
    """Write the frames, for each how many seconds it is shown and its lines of `width` columns; it plays for ever."""
    from PIL import Image

    shown = _without_repetition(frames)
    painter = _Painter(width, max(len(lines) for _, lines in shown), theme)
    pictures = [painter.paint(lines) for _, lines in shown]
    # One palette for all: frames then differ only where their text does.
    palette = Image.new("P", (1, 1))
    palette.putpalette(painter.palette())
    indexed = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    indexed[0].save(
        path,
        format="GIF",
        save_all=True,
        append_images=indexed[1:],
        duration=[round(1000 * seconds) for seconds, _ in shown],
        loop=0,
        optimize=True,
    )


class _Painter:
    """Draws characters on a grid."""

    def __init__(self, width: int, height: int, theme: TerminalTheme) -> None:
        self.theme = theme
        self.font, self.bold = find_font(), find_font(BOLD_FONT) or find_font()
        self.column, self.line = round(self.font.getlength("M")), sum(self.font.getmetrics())
        self.size = width * self.column + 2 * MARGIN, height * self.line + 2 * MARGIN
        self._pairs: dict[tuple[Pixel, Pixel], None] = {}  # colours of characters and behind them, in order of use

    def palette(self) -> list[int]:
        """The colours that were painted with, red, green and blue of each."""
        shades = dict.fromkeys(
            tuple(round(back + share * (front - back)) for front, back in zip(*pair, strict=True))
            for share in reversed(SHADES)
            for pair in self._pairs
        )
        return [value for colour in list(shades)[:COLOURS] for value in colour]

    def paint(self, lines: Lines) -> Any:
        """The picture of a frame."""
        from PIL import Image, ImageDraw

        picture = Image.new("RGB", self.size, tuple(self.theme.background_color))
        draw = ImageDraw.Draw(picture)
        for row, line in enumerate(lines):
            column = 0
            for text, style, control in line:
                if control:
                    continue
                for character in text:
                    cells = cell_len(character)
                    if cells:
                        self._character(draw, column, row, character, cells, style or Style.null())
                    column += cells
        return picture

    def _character(self, draw: Any, column: int, row: int, character: str, cells: int, style: Style) -> None:
        left, top = MARGIN + column * self.column, MARGIN + row * self.line
        front, back = self._pixel(style.color, foreground=True), self._pixel(style.bgcolor, foreground=False)
        self._pairs[front, back] = None
        draw.rectangle((left, top, left + cells * self.column - 1, top + self.line - 1), fill=back)
        if character != " ":
            draw.text((left, top), character, fill=front, font=self.bold if style.bold else self.font)

    def _pixel(self, colour: Any, *, foreground: bool) -> Pixel:
        if colour is None:
            return tuple(self.theme.foreground_color if foreground else self.theme.background_color)
        return tuple(colour.get_truecolor(self.theme, foreground=foreground))


def _without_repetition(frames: Sequence[tuple[float, Lines]]) -> list[tuple[float, Lines]]:
    """Frames that look the same become one."""
    found: list[tuple[float, Lines]] = []
    for seconds, lines in frames:
        if found and found[-1][1] == lines:
            found[-1] = found[-1][0] + seconds, lines
        else:
            found.append((seconds, lines))
    return found


def _matplotlibs(name: str) -> Path:
    spec = find_spec("matplotlib")
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    return Path(*folders[:1], "mpl-data", "fonts", "ttf", name)
