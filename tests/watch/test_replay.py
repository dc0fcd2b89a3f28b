# SPDX-License-Identifier: Apache-2.0
"""What a terminal gets while a comparison is measured, and when it is shown on one clock."""

import re
from io import StringIO

import pytest
from rich.console import Console

from redrafter_vllm.watch import replay as module
from redrafter_vllm.watch.race import Race
from redrafter_vllm.watch.recording import Recording
from redrafter_vllm.watch.replay import measuring, print_end, replay
from tests.watch.stories import race

OWN_SCREEN, BACK = "\x1b[?1049h", "\x1b[?1049l"
CODE = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
SLOWER = 5  # 0.4 s are shown in 2 s, at ten frames a second


class Clock:
    """`time`, which passes while somebody sleeps; Ctrl-C comes `interrupted_at` seconds after the start."""

    def __init__(self, interrupted_at: float = float("inf")) -> None:
        self.now, self._interrupted_at = 0.0, interrupted_at

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        if self.now >= self._interrupted_at:
            raise KeyboardInterrupt


def terminal() -> Console:
    return Console(file=StringIO(), force_terminal=True, color_system="truecolor", width=120, height=24)


def written(console: Console) -> str:
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def frames(console: Console) -> list[str]:
    """The texts of the pictures, each of which begins at the upper left corner."""
    return [CODE.sub("", frame) for frame in written(console).split("\x1b[H")[1:]]


def test_both_sides_run_on_one_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, console = Clock(), terminal()
    monkeypatch.setattr(module, "time", clock)
    replay(race(), console, SLOWER)
    assert written(console).startswith(OWN_SCREEN) and written(console).count(BACK) == 1
    # The last picture stays for a second.
    assert clock.now == pytest.approx(2.0 + 1.0)
    shown = [frame for frame in frames(console) if "slower" in frame or "times plain" in frame]
    assert "0.00 s" in shown[0] and "5 times slower" in shown[0]
    # After 0.15 s of 0.4, in the eighth frame: plain decoding is at its second token, the other side at its fourth.
    assert "The sky▌" in shown[8] and "The sky is blue▌" in shown[8]
    assert "1.33 times plain decoding" in shown[-1]


def test_ctrl_c_ends_it_and_gives_the_screen_back(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, console = Clock(interrupted_at=0.5), terminal()
    monkeypatch.setattr(module, "time", clock)
    replay(race(), console, SLOWER)
    assert clock.now < 0.7 and written(console).count(BACK) == 1
    assert "times plain decoding" not in written(console)


def test_a_terminal_shows_how_far_the_measurement_is() -> None:
    console, shown = terminal(), race()
    begun = Race(shown.prompt, Recording("plain"), Recording("ReDrafter"))
    with measuring(begun, console) as drawing:
        draw = drawing("1 of 2: measuring plain vLLM")
        draw()
        assert "The" not in frames(console)[-1]
        begun.plain.steps += shown.plain.steps[:2]
        draw()
    drawn = [frame for frame in frames(console) if "1 of 2: measuring plain vLLM" in frame]
    assert len(drawn) == 2 and "The sky" in drawn[-1] and " is" not in drawn[-1].split("The sky")[1][:10]
    assert written(console).count(OWN_SCREEN) == written(console).count(BACK) == 1


def test_elsewhere_a_line_says_what_is_measured() -> None:
    console = Console(file=StringIO(), width=120)
    with measuring(race(), console) as drawing:
        drawing("2 of 2: measuring [ReDrafter]")()
    assert written(console) == "2 of 2: measuring [ReDrafter]\n"


def test_the_end_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    console = terminal()
    print_end(race(), console)
    text = CODE.sub("", written(console))
    assert (
        OWN_SCREEN not in written(console) and "1.33 times plain decoding" in text and "The sky is blue today" in text
    )
