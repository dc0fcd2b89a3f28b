# SPDX-License-Identifier: Apache-2.0
"""Draft trees in a terminal."""

from collections.abc import Iterator, Sequence

from redrafter_vllm.inspection.trees import Step, tokens_per_step

ACCEPTED = "\033[1;32m"
PLAIN = "\033[0m"


def trees_text(steps: Sequence[Step], *, colour: bool) -> str:
    """All steps, each with its tree; accepted nodes have a check mark, and a colour if wanted."""
    lines: list[str] = []
    for number, step in enumerate(steps, 1):
        lines += [f"step {number}: {step.accepted} accepted", repr(step.root), *_below(step, -1, "", colour)]
        lines.append(f"the target goes on with {step.next_root!r}" if step.next_root is not None else "the end")
        lines.append("")
    lines.append(f"{tokens_per_step(steps):.2f} tokens per step in {len(steps)} steps")
    return "\n".join(lines) + "\n"


def _below(step: Step, parent: int, indent: str, colour: bool) -> Iterator[str]:
    children = step.children(parent)
    for place, index in enumerate(children):
        last = place == len(children) - 1
        node = step.nodes[index]
        text = f"{node.text!r} {node.probability:.0%}"
        if node.accepted:
            text = f"{ACCEPTED}{text} ✓{PLAIN}" if colour else f"{text} ✓"
        yield f"{indent}{'└─' if last else '├─'} {text}"
        yield from _below(step, index, indent + ("   " if last else "│  "), colour)
