# SPDX-License-Identifier: Apache-2.0
"""Draft trees as a page that needs no other file."""

from collections.abc import Mapping, Sequence
from html import escape

from redrafter_vllm.inspection.trees import Step, tokens_per_step
from redrafter_vllm.utils import html_page

_STYLE = """
ul { list-style: none; margin: 0; padding-left: 1.4rem; border-left: 1px solid #d4d9e2; }
li { margin: .2rem 0; }
.token { font-family: ui-monospace, monospace; background: #eef1f6; border-radius: .3rem; padding: .1rem .45rem;
  white-space: pre; }
.accepted > .token { background: #bfe8c8; }
.root { background: #1c2330; color: white; }
.bar { display: inline-block; height: .5rem; background: #8ea3c9; border-radius: .25rem; margin: 0 .4rem 0 .6rem; }
.figure { color: #5b6577; font-size: .85rem; }
.answer { white-space: pre-wrap; background: #f6f8fb; padding: 1rem; border-radius: .5rem; }
.answer mark { background: #bfe8c8; }
"""


def trees_page(prompt: str, facts: Mapping[str, str], steps: Sequence[Step]) -> str:
    """Prompt, answer with the accepted drafts marked, a tree for each step, facts about the drafter."""
    rate = f"{tokens_per_step(steps):.2f} tokens per step in {len(steps)} steps; tokens from accepted drafts are green."
    parts = [
        html_page.paragraph(rate),
        f'<p class="answer">{_answer(steps)}</p>',
        *(_step(number, step) for number, step in enumerate(steps, 1)),
        html_page.heading("The drafter"),
        html_page.facts_table(facts),
    ]
    return html_page.page(prompt, parts, style=_STYLE)


def _answer(steps: Sequence[Step]) -> str:
    parts = []
    for step in steps:
        parts.append(escape(step.root))
        parts += [f"<mark>{escape(node.text)}</mark>" for node in step.nodes if node.accepted]
    return "".join(parts)


def _step(number: int, step: Step) -> str:
    after = "the end" if step.next_root is None else f"then {escape(repr(step.next_root))}"
    return (
        f'<h2>Step {number}: {step.accepted} accepted, {after}</h2><span class="token root">{_token(step.root)}</span>'
        f"{_below(step, -1)}"
    )


def _below(step: Step, parent: int) -> str:
    items = []
    for index in step.children(parent):
        node = step.nodes[index]
        kind = ' class="accepted"' if node.accepted else ""
        figures = f"{node.probability:.0%}, path {node.reached:.1%}"
        items.append(
            f'<li{kind}><span class="token">{_token(node.text)}</span>'
            f'<span class="bar" style="width:{8 * node.reached:.2f}rem"></span>'
            f'<span class="figure">{figures}</span>{_below(step, index)}</li>'
        )
    return f"<ul>{''.join(items)}</ul>" if items else ""


def _token(text: str) -> str:
    return escape(text).replace("\n", "↵")
