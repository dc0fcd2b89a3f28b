# SPDX-License-Identifier: Apache-2.0
"""A page that replays frames of text and needs no other file."""

import json
from collections.abc import Sequence
from html import escape

from rich.terminal_theme import TerminalTheme

_STYLE = """
body { background: %s; color: %s; font: 14px system-ui, sans-serif; margin: 1.5rem; }
pre { font: 13px/1.25 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; margin: 1rem 0; }
pre { display: none; } pre.shown { display: block; }
button { font: inherit; padding: .2rem .9rem; } input { width: 30rem; max-width: 60vw; vertical-align: middle; }
"""
_SCRIPT = """
const frames = [...document.querySelectorAll("pre")], play = document.getElementById("play");
const place = document.getElementById("place");
let timer = null, shown = frames.length - 1;
function show(index) {
  frames[shown].classList.remove("shown"); shown = index; frames[shown].classList.add("shown"); place.value = shown;
}
function stop() { clearTimeout(timer); timer = null; play.textContent = "play"; }
function next() {
  if (shown === frames.length - 1) { stop(); return; }
  show(shown + 1); timer = setTimeout(next, durations[shown]);
}
play.onclick = () => {
  if (timer) { stop(); return; }
  if (shown === frames.length - 1) show(0);
  play.textContent = "pause"; timer = setTimeout(next, durations[shown]);
};
place.oninput = () => { stop(); show(Number(place.value)); };
place.max = shown; place.value = shown;
play.click();
"""


def replay_page(title: str, theme: TerminalTheme, frames: Sequence[tuple[float, str]]) -> str:
    """The page; without scripts it shows the last frame.

    Args:
        title: Of the page.
        theme: Colours of text and background.
        frames: For each how many seconds it is shown, and its HTML.
    """
    colours = theme.background_color.hex, theme.foreground_color.hex
    last = len(frames) - 1
    drawn = "".join(f"<pre{' class=shown' * (place == last)}>{html}</pre>\n" for place, (_, html) in enumerate(frames))
    durations = json.dumps([round(1000 * seconds) for seconds, _ in frames])
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE % colours}</style></head><body>"
        f'<div><button id="play">play</button> <input id="place" type="range" min="0"></div>\n{drawn}'
        f"<script>const durations = {durations};{_SCRIPT}</script></body></html>\n"
    )
