# SPDX-License-Identifier: Apache-2.0
"""What stands on the screen at a moment of a hand-made comparison."""

import io
import math

import pytest
from rich.console import Console
from rich.segment import Segment

from redrafter_vllm.watch.race import Race
from redrafter_vllm.watch.recording import Recording, Step, Tree
from redrafter_vllm.watch.view import DEPTHS, View
from tests.watch.stories import race


def lines_at(told: Race, seconds: float, width: int = 120, height: int = 20, colours: bool = False) -> list[str]:
    return ["".join(part.text for part in line) for line in drawn(told, seconds, width, height, colours)]


def drawn(told: Race, seconds: float, width: int, height: int, colours: bool) -> list[list[Segment]]:
    kind = {"force_terminal": True, "color_system": "truecolor"} if colours else {"color_system": None}
    console = Console(width=width, height=height, file=io.StringIO(), **kind)  # type: ignore[arg-type]
    return console.render_lines(View(console, width, height).at(told, seconds, "title"))


def test_in_the_middle() -> None:
    shown = lines_at(race(), 0.15)
    assert len(shown) == 20 and {len(line) for line in shown} == {120}
    assert shown[0].rstrip() == "title" and shown[1].rstrip() == "prompt: Why is it blue?"
    plain, drafted, tree = columns(shown)
    assert plain[0] == "The sky▌" and drafted[0] == "The« sky»« is» blue▌"
    assert plain[-2:] == ["2 tokens, 2 steps, 0.10 s", "1.00 tokens/step  10.0 tokens/s"]
    assert drafted[-2:] == ["4 tokens, 2 steps, 0.15 s", "3.00 tokens/step  20.0 tokens/s"]
    assert "step 2: 2 of 6 drafts accepted" in shown[2]
    assert [line for line in tree if line] == [
        "'The'",
        "├─ ' sky' ✓",
        "│  ├─ ' is' ✓",
        "│  │  └─ ' blue'",
        "│  └─ ' was'",
        "└─ ' sea'",
        "   └─ ' grey'",
        "then the target: ' blue'",
    ]


def columns(shown: list[str]) -> tuple[list[str], ...]:
    """The inner lines of the three panels, without blanks at their ends."""
    inner = [line for line in shown if line.startswith("│")]
    widths = (42, 42, 36)
    starts = (0, 42, 84)
    return tuple(
        [line[start + 2 : start + width - 2].rstrip() for line in inner]
        for start, width in zip(starts, widths, strict=True)
    )


def test_while_it_streams_the_last_tree_that_was_read_is_drawn() -> None:
    story = race()
    story.drafted.steps = [Step(step.seconds, step.texts) for step in race().drafted.steps]
    story.drafted.ended = False
    said = " ".join(line for line in columns(lines_at(story, math.inf))[2] if line)
    assert (
        said == "The trees come with the replay, as reading them slows the measured steps; --live reads them meanwhile."
    )
    story.drafted.joined = race().drafted.steps[:2]
    shown = lines_at(story, math.inf)
    assert "step 2: 2 of 6 drafts accepted" in shown[2] and "├─ ' sky' ✓" in columns(shown)[2]


def test_at_the_end_both_are_marked_as_done() -> None:
    plain, drafted, tree = columns(lines_at(race(), 0.4))
    assert plain[0] == "The sky is blue today" and drafted[0] == "The« sky»« is» blue today"
    assert plain[-2].endswith("0.40 s ✓") and drafted[-2].endswith("0.30 s ✓")
    assert tree[:3] == ["' blue'", "└─ ' and'", "then the target: ' today'"]


def test_colours_by_depth() -> None:
    styles = {part.text: part.style for line in drawn(race(), 0.15, 120, 20, True) for part in line if part.style}
    for text, depth in ((" sky", 1), (" is", 2), ("' sky'", 1), ("' is'", 2)):
        assert styles[text].bgcolor is not None
        assert styles[text].bgcolor.name == DEPTHS[depth - 1].split()[-1], text
    for text in (" blue", "' grey'", "' was'", "' blue'"):
        assert text not in styles or styles[text].bgcolor is None, text


def test_a_narrow_terminal_has_the_tree_below() -> None:
    shown = lines_at(race(), 0.15, width=80, height=30)
    assert len(shown) == 30 and {len(line) for line in shown} == {80}
    assert shown[3].startswith("│ The sky▌") and any(line.startswith("│ ├─ ' sky' ✓") for line in shown)


def test_a_large_tree_keeps_the_accepted_path() -> None:
    """Forty children of the root, of which the last one is accepted, and a chain below it."""
    nodes = tuple(f" n{index}" for index in range(42))
    tree = Tree("r", nodes, (-1,) * 40 + (39, 40), (39, 40, 41))
    told = race()
    told.drafted.steps[2] = Step(0.3, (" n39", " n40", " n41", "end"), tree)
    shown = [line for line in columns(lines_at(told, 0.3))[2] if line]
    # 15 lines, of which root, hidden ones and the target's token need three.
    assert len(shown) == 15 and shown[0] == "'r'" and shown[1] == "├─ ' n0'"
    assert shown[-5:] == [
        "└─ ' n39' ✓",
        "   └─ ' n40' ✓",
        "      └─ ' n41' ✓",
        "… and 30 less probable nodes",
        "then the target: 'end'",
    ]


def test_a_long_answer_shows_its_end() -> None:
    told = race()
    told.plain.steps[:] = [Step(0.1 * place, (f"line {place}\n",)) for place in range(50)]
    plain = columns(lines_at(told, 4.9))[0]
    assert "line 49" in plain and "line 30" not in plain and plain[-1].startswith("1.00 tokens/step")


def test_an_answer_cannot_act_on_the_terminal() -> None:
    told = race()
    told.plain.steps[1] = Step(0.1, ("\033[2J\a\tend",))
    shown = "".join(lines_at(told, 0.4, colours=True))
    assert "\033" not in shown and "\a" not in shown and "·[2J·    end" in shown


@pytest.mark.parametrize(
    ("ended", "reason", "expected"),
    [(False, "", "The trees come with the replay"), (True, "This server does not report", "does not report")],
)
def test_without_a_tree_the_reason_is_shown(ended: bool, reason: str, expected: str) -> None:
    steps = [Step(step.seconds, step.texts) for step in race().drafted.steps]
    told = Race("p", race().plain, Recording("ReDrafter", steps, ended, reason))
    assert expected in " ".join(columns(lines_at(told, 0.3))[2])
    # Without trees all but the last token of a step are taken for drafts.
    assert "The« sky»« is» blue today" in "".join(lines_at(told, 0.3))
