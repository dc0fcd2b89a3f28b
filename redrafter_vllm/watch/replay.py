# SPDX-License-Identifier: Apache-2.0
"""Showing a comparison: live while it is measured, then both sides on one clock."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial

from rich.console import Console
from rich.live import Live

from redrafter_vllm.watch.race import SEQUENTIAL, Race
from redrafter_vllm.watch.view import View

FRAMES_PER_SECOND = 10


def title_at(race: Race, seconds: float, slow_motion: int) -> str:
    """Where the clock stands, and what kind of clock it is; the result at the end."""
    if seconds >= race.duration:
        return " ".join(race.result())
    pace = "" if slow_motion == 1 else f", {slow_motion} times slower"
    return f"{seconds:6.2f} s  {SEQUENTIAL}{pace}"


def frame_times(race: Race, slow_motion: int) -> Iterator[float]:
    """Seconds on the measured clock, a frame each; the last one shows the end."""
    count = math.ceil(race.duration * slow_motion * FRAMES_PER_SECOND)
    yield from (index / FRAMES_PER_SECOND / slow_motion for index in range(count))
    yield race.duration


@contextmanager
def measuring(race: Race, console: Console) -> Iterator[Callable[[str], Callable[[], None]]]:
    """Yields a function that takes what is being measured and returns one that draws how far it is.

    Where the console is no terminal, only what is being measured is said.
    """
    if not console.is_terminal:
        yield partial(_said, console)
        return
    view = View(console, *console.size)
    with Live(console=console, screen=True, auto_refresh=False) as live:
        yield lambda title: lambda: live.update(view.at(race, math.inf, title), refresh=True)


def replay(race: Race, console: Console, slow_motion: int) -> None:
    """Both sides on one clock, on a screen of their own; Ctrl-C ends it."""
    view = View(console, *console.size)
    begin = time.monotonic()
    with suppress(KeyboardInterrupt), Live(console=console, screen=True, auto_refresh=False) as live:
        for seconds in frame_times(race, slow_motion):
            time.sleep(max(0.0, begin + seconds * slow_motion - time.monotonic()))
            live.update(view.at(race, seconds, title_at(race, seconds, slow_motion)), refresh=True)
        time.sleep(1.0)


def print_end(race: Race, console: Console) -> None:
    """The last picture, which stays."""
    view = View(console, console.width, console.height - 2)
    console.print(view.at(race, race.duration, title_at(race, race.duration, 1)))


def _said(console: Console, title: str) -> Callable[[], None]:
    console.print(title, markup=False, highlight=False)
    return lambda: None
