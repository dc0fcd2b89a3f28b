# SPDX-License-Identifier: Apache-2.0
"""A comparison as a file: a picture (SVG), a moving picture (GIF), or a page that replays it (HTML)."""

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console, RenderableType
from rich.terminal_theme import SVG_EXPORT_THEME

from redrafter_vllm.utils.atomic import atomic_file, write_text
from redrafter_vllm.watch.gif import Lines, find_font, save_gif
from redrafter_vllm.watch.page import replay_page
from redrafter_vllm.watch.race import Race
from redrafter_vllm.watch.replay import FRAMES_PER_SECOND, frame_times, title_at
from redrafter_vllm.watch.view import View

ENDINGS = (".svg", ".gif", ".html")
TITLE = "redrafter watch"
HOLD_SECONDS = 5.0  # how long the end is shown
FONT_FACE = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)


class ExportError(ValueError):
    """A file that cannot be made; the message is one sentence."""


def check_export(path: Path) -> None:
    """Raises ExportError where `path` has another ending, or needs what is not installed."""
    if path.suffix.lower() not in ENDINGS:
        raise ExportError(f"{path} must end in {', '.join(ENDINGS)}, which choose the format")
    if path.suffix.lower() == ".gif" and find_font() is None:
        raise ExportError(
            "a GIF needs Pillow and the font DejaVu Sans Mono (Debian's fonts-dejavu-core, or pip install matplotlib); "
            "an SVG or an HTML page needs neither"
        )


@dataclass(frozen=True)
class Exporter:
    """Draws the comparison on a screen of `width` by `height` characters."""

    race: Race
    width: int
    height: int
    slow_motion: int

    def save(self, path: Path) -> None:
        """Write the file in the format of its ending."""
        {".svg": self._svg, ".gif": self._gif, ".html": self._html}[path.suffix.lower()](path)

    def _svg(self, path: Path) -> None:
        """The moment at which the faster side has ended."""
        console = self._console()
        at = self.race.first_end
        console.print(View(console, self.width, self.height).at(self.race, at, title_at(self.race, at, 1)))
        # Rich names fonts to be fetched from elsewhere; the reader's monospaced one takes their place.
        write_text(path, FONT_FACE.sub("", console.export_svg(title=TITLE, theme=SVG_EXPORT_THEME)))

    def _html(self, path: Path) -> None:
        frames: list[tuple[float, str]] = []
        for seconds, at in self._moments():
            console = self._console()
            console.print(self._view(console, at))
            shown = console.export_html(theme=SVG_EXPORT_THEME, inline_styles=True, code_format="{code}")
            frames.append((seconds, shown))
        write_text(path, replay_page(TITLE, SVG_EXPORT_THEME, frames))

    def _gif(self, path: Path) -> None:
        frames: list[tuple[float, Lines]] = []
        for seconds, at in self._moments():
            console = self._console()
            frames.append((seconds, console.render_lines(self._view(console, at))))
        with atomic_file(path) as temporary:
            save_gif(temporary, frames, self.width, SVG_EXPORT_THEME)

    def _moments(self) -> Iterator[tuple[float, float]]:
        """For each frame how long it is shown, and its time on the measured clock."""
        times = list(frame_times(self.race, self.slow_motion))
        for at in times[:-1]:
            yield 1 / FRAMES_PER_SECOND, at
        yield HOLD_SECONDS, times[-1]

    def _view(self, console: Console, at: float) -> RenderableType:
        return View(console, self.width, self.height).at(self.race, at, title_at(self.race, at, self.slow_motion))

    def _console(self) -> Console:
        return Console(
            record=True,
            width=self.width,
            height=self.height,
            file=io.StringIO(),
            force_terminal=True,
            color_system="truecolor",
        )
