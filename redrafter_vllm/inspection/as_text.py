# SPDX-License-Identifier: Apache-2.0
"""Draft trees in a terminal."""

from collections.abc import Iterator

from redrafter_vllm.inspection.branches import branches
from redrafter_vllm.inspection.trees import Choice, Drawing, Node, Step

ACCEPTED = "\033[1;32m"
PLAIN = "\033[0m"
COLUMNS = "drafter  survival  target  says then"


def trees_text(drawing: Drawing, *, colour: bool) -> str:
    """All steps, each with its tree; accepted nodes have a check mark, and a colour if wanted."""
    lines: list[str] = []
    for number, step in enumerate(drawing.steps, 1):
        lines += [*_step(number, step, colour), ""]
    lines += [
        "drafter    the drafter's probability for the token after the one above it, or that it is copied from the text",
        f"survival   that it and all above it are accepted, as serving expects at first: {drawing.calibration}",
        "target     the target's probability for the token after the one above it",
        "says then  what the target says after the token, and how probable it finds that",
        drawing.rate,
    ]
    return "\n".join(lines) + "\n"


def _step(number: int, step: Step, colour: bool) -> Iterator[str]:
    """The tree with its figures in columns."""
    heading = f"step {number}: {step.accepted} accepted"
    marks = [f"{node.text!r}{' ✓' if node.accepted else ''}" for node in step.nodes]
    drawn = list(branches([node.parent for node in step.nodes]))
    width = max(map(len, [heading, repr(step.root), *(indent + marks[index] for indent, index in drawn)]))
    yield f"{heading:<{width}}  {COLUMNS}"
    yield f"{step.root!r:<{width}}  {'':<{COLUMNS.index('says')}}{_said(step.says)}"
    for indent, index in drawn:
        node, blanks = step.nodes[index], " " * (width - len(indent) - len(marks[index]))
        text = f"{ACCEPTED}{marks[index]}{PLAIN}" if colour and node.accepted else marks[index]
        yield f"{indent}{text}{blanks}  {_figures(node)}"
    yield f"the target goes on with {step.next_root!r}" if step.next_root is not None else "the end"


def _figures(node: Node) -> str:
    drafter = "copy" if node.drafter is None else f"{node.drafter:.0%}"
    return f"{drafter:>7}  {node.survival:>8.1%}  {node.target:>6.0%}  {_said(node.says)}"


def _said(choice: Choice) -> str:
    return f"{choice.text!r} {choice.probability:.0%}"
