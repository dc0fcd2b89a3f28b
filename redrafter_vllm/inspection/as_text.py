# SPDX-License-Identifier: Apache-2.0
"""Draft trees in a terminal."""

from collections.abc import Iterator, Sequence

from redrafter_vllm.inspection.branches import branches
from redrafter_vllm.inspection.trees import Step, tokens_per_step

ACCEPTED = "\033[1;32m"
PLAIN = "\033[0m"


def trees_text(steps: Sequence[Step], *, colour: bool) -> str:
    """All steps, each with its tree; accepted nodes have a check mark, and a colour if wanted."""
    lines: list[str] = []
    for number, step in enumerate(steps, 1):
        lines += [f"step {number}: {step.accepted} accepted", repr(step.root), *_nodes(step, colour)]
        lines.append(f"the target goes on with {step.next_root!r}" if step.next_root is not None else "the end")
        lines.append("")
    lines.append(f"{tokens_per_step(steps):.2f} tokens per step in {len(steps)} steps")
    return "\n".join(lines) + "\n"


def _nodes(step: Step, colour: bool) -> Iterator[str]:
    for indent, index in branches([node.parent for node in step.nodes]):
        node = step.nodes[index]
        text = f"{node.text!r} {node.probability:.0%}"
        if node.accepted:
            text = f"{ACCEPTED}{text} ✓{PLAIN}" if colour else f"{text} ✓"
        yield indent + text
