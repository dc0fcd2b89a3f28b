# SPDX-License-Identifier: Apache-2.0
"""One picture of the comparison: both answers, their figures, the current draft tree."""

from collections.abc import Sequence

from rich.box import ROUNDED
from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from redrafter_vllm.inspection.branches import branches
from redrafter_vllm.utils.messages import shortened
from redrafter_vllm.watch.race import Race
from redrafter_vllm.watch.recording import Recording, Step, Tree

# By depth of the draft; deeper ones have the last colour. All are read on dark and on light backgrounds.
DEPTHS = ("black on #a6e3a1", "black on #74c7ec", "black on #cba6f7", "black on #fab387", "black on #f38ba8")
QUIET = "bright_black"
WIDE = 100  # columns from which the tree stands beside the answers
FRAME = 4  # columns of a panel's border and padding
AROUND = 3  # lines around the panels: title, prompt, legend
FIGURES = 3  # lines of figures in a panel, with the blank one before


class View:
    """Draws for a console of `width` by `height`; without colours accepted drafts are in «»."""

    def __init__(self, console: Console, width: int, height: int) -> None:
        self.console = console
        self.marks = console.color_system is None
        self.width, self.height = max(width, 40), max(height, 20)

    def at(self, race: Race, seconds: float, title: str) -> RenderableType:
        """The comparison so many seconds after the first token; infinity shows all that there is."""
        room = self.height - AROUND
        head = [Text(title, style="bold", no_wrap=True, overflow="ellipsis"), self._prompt(race.prompt)]
        if self.width >= WIDE:
            tree_width = self.width * 3 // 10
            half, rest = divmod(self.width - tree_width, 2)
            row = self._row(
                self._answer(race.plain, seconds, half, room),
                self._answer(race.drafted, seconds, half + rest, room),
                self._tree(race.drafted, seconds, tree_width, room),
                widths=(half, half + rest, tree_width),
            )
            return Group(*head, row, self._legend())
        half, rest = divmod(self.width, 2)
        answers = self._row(
            self._answer(race.plain, seconds, half, room - room // 2),
            self._answer(race.drafted, seconds, half + rest, room - room // 2),
            widths=(half, half + rest),
        )
        return Group(*head, answers, self._tree(race.drafted, seconds, self.width, room // 2), self._legend())

    def _row(self, *cells: RenderableType, widths: Sequence[int]) -> Table:
        row = Table.grid(padding=0)
        for width in widths:
            row.add_column(width=width, no_wrap=True)
        row.add_row(*cells)
        return row

    def _prompt(self, prompt: str) -> Text:
        text = Text("prompt: ", style=QUIET, no_wrap=True, overflow="ellipsis")
        return text.append(shortened(prompt, self.width - 8), style="default")

    def _legend(self) -> Text:
        legend = Text("accepted drafts at depth ", style=QUIET, no_wrap=True, overflow="ellipsis")
        for depth, style in enumerate(DEPTHS, 1):
            legend.append(f" {depth}{'+' if depth == len(DEPTHS) else ''} ", style=style).append(" ")
        return legend.append(" the other tokens are the target's own", style=QUIET)

    def _answer(self, recording: Recording, seconds: float, width: int, height: int) -> Panel:
        steps = recording.until(seconds)
        text = Text()
        for step in steps:
            text.append_text(self._step(step))
        complete = recording.ended and len(steps) == len(recording.steps)
        if steps and not complete:
            text.append("▌")
        lines = text.wrap(self.console, width - FRAME)[-(height - 2 - FIGURES) :]
        body = Text("\n", no_wrap=True).join(lines)
        body.append("\n" * (height - 2 - FIGURES - len(lines) + 2))
        body.append_text(_figures(recording, seconds, complete))
        return Panel(body, title=recording.title, box=ROUNDED, border_style=QUIET, width=width, height=height)

    def _step(self, step: Step) -> Text:
        text = Text()
        for place, token in enumerate(step.texts):
            if place >= step.num_drafts:
                text.append(_visible(token))
            elif self.marks:
                text.append(f"«{_visible(token)}»")
            else:
                text.append(_visible(token), style=_depth_style(place + 1))
        return text

    def _tree(self, recording: Recording, seconds: float, width: int, height: int) -> Panel:
        steps = recording.joined or recording.until(seconds)
        number, tree = len(steps), steps[-1].tree if steps else None
        title = "draft tree"
        if tree is not None:
            title = f"step {number}: {len(tree.path)} of {len(tree.nodes)} drafts accepted"
            if not tree.nodes:
                title = f"step {number}: no draft was worth its time"
            body = self._drawn(tree, steps[-1], width - FRAME, height - 2)
        else:
            reason = Text(_no_tree(recording, number), style=QUIET).wrap(self.console, width - FRAME)
            body = Text("\n", no_wrap=True).join(reason[: height - 2])
        return Panel(body, title=title, box=ROUNDED, border_style=QUIET, width=width, height=height)

    def _drawn(self, tree: Tree, step: Step, width: int, height: int) -> Text:
        shown = _fitting(tree, height - 3)
        lines = [_cut(Text(_quoted(tree.root), style="bold"), width)]
        for indent, node in branches(tree.parents, shown):
            line = Text(indent, style=QUIET)
            if node in tree.path:
                style = "bold" if self.marks else _depth_style(tree.depth(node))
                line.append(_quoted(tree.nodes[node]), style=style).append(" ✓", style="bold green")
            else:
                line.append(_quoted(tree.nodes[node]), style="default")
            lines.append(_cut(line, width))
        if hidden := len(tree.nodes) - len(shown):
            lines.append(Text(f"… and {hidden} less probable nodes", style=QUIET))
        if step.num_drafts < len(step.texts):
            said = Text("then the target: ", style=QUIET).append(_quoted(step.texts[-1]), style="bold default")
            lines.append(_cut(said, width))
        return Text("\n", no_wrap=True).join(lines)


def _figures(recording: Recording, seconds: float, complete: bool) -> Text:
    figures = recording.figures(seconds)
    text = Text(no_wrap=True)
    if not figures.steps:
        return text.append("\n")
    ended = " ✓" if complete else ""
    text.append(f"{figures.tokens} tokens, {figures.steps} steps, {figures.seconds:.2f} s{ended}\n", style=QUIET)
    if figures.tokens_per_step is not None and figures.tokens_per_second is not None:
        text.append(f"{figures.tokens_per_step:.2f} tokens/step  {figures.tokens_per_second:.1f} tokens/s", "bold")
    return text


def _no_tree(recording: Recording, number: int) -> str:
    if not recording.steps:
        return "waiting"
    if not recording.ended:
        return "The trees come with the replay, as reading them slows the measured steps; --live reads them meanwhile."
    first = "The first step is the prompt's: it verifies nothing."
    return recording.no_trees or (first if number == 1 else "The trees are being read." if number else "")


def _fitting(tree: Tree, height: int) -> set[int]:
    """At most so many nodes: the accepted path and the most probable ones, each with its parent."""
    shown = set(tree.path)
    for node in range(len(tree.nodes)):
        if len(shown) < height:
            shown.add(node)
    return shown


def _depth_style(depth: int) -> str:
    return DEPTHS[min(depth, len(DEPTHS)) - 1]


def _visible(text: str) -> str:
    """Without what would act on a terminal."""
    return "".join(c if c.isprintable() or c == "\n" else "    " if c == "\t" else "·" for c in text)


def _quoted(text: str) -> str:
    return f"'{_visible(text).replace(chr(10), '↵')}'"


def _cut(line: Text, width: int) -> Text:
    if cell_len(line.plain) > width:
        line.truncate(width, overflow="ellipsis")
    return line
