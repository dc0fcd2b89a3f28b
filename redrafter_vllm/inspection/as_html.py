# SPDX-License-Identifier: Apache-2.0
"""Draft trees as a page that needs no other file."""

from collections.abc import Mapping, Sequence
from html import escape

from redrafter_vllm.inspection.trees import Step, tokens_per_step
from redrafter_vllm.utils import html_page

_STYLE = """
ul { list-style: none; margin: 0; padding-left: 1.2rem; border-left: 1px solid #d4d9e2; }
li { margin: .2rem 0; white-space: nowrap; }
.token { font-family: ui-monospace, monospace; background: #eef1f6; border-radius: .3rem; padding: .1rem .45rem;
  white-space: pre; }
.accepted > .token { background: #bfe8c8; }
.root { background: #1c2330; color: white; }
.bar { display: inline-block; height: .5rem; background: #8ea3c9; border-radius: .25rem; margin: 0 .35rem 0 .5rem; }
.figure { color: #5b6577; font-size: .8rem; }
.answer { white-space: pre-wrap; background: #f6f8fb; padding: 1rem; border-radius: .5rem; }
.answer mark { background: #bfe8c8; }
.steps { display: grid; grid-template-columns: repeat(auto-fill, minmax(19rem, 1fr)); gap: 0 1.5rem; }
.steps section { overflow-x: auto; font-size: .9rem; }
.steps h2 { font-size: .92rem; margin-top: 1.2rem; white-space: nowrap; }
"""
_LEGEND = (
    "Each step starts from the last token of the text, which is dark. Below it is its draft tree: what the target says "
    "is green where it was drafted, and the token that it says then is in the heading. Beside a draft token are the "
    "drafter's probability for it and that of the whole path up to it, also as a bar: how likely the token is to "
    "survive by the drafter's own estimate."
)


def trees_page(prompt: str, facts: Mapping[str, str], steps: Sequence[Step]) -> str:
    """Prompt, answer with the accepted drafts marked, a tree for each step, facts about the drafter."""
    rate = f"{tokens_per_step(steps):.2f} tokens per step in {len(steps)} steps; tokens from accepted drafts are green."
    parts = [
        html_page.paragraph(rate),
        f'<p class="answer">{_answer(steps)}</p>',
        html_page.paragraph(_LEGEND, note=True),
        f'<div class="steps">{"".join(_step(number, step) for number, step in enumerate(steps, 1))}</div>',
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
        f"<section><h2>Step {number}: {step.accepted} accepted, {after}</h2>"
        f'<span class="token root">{_token(step.root)}</span>{_below(step, -1)}</section>'
    )


def _below(step: Step, parent: int) -> str:
    items = []
    for index in step.children(parent):
        node = step.nodes[index]
        kind = ' class="accepted"' if node.accepted else ""
        figures = f"{node.probability:.0%}, path {node.reached:.1%}"
        items.append(
            f'<li{kind}><span class="token">{_token(node.text)}</span>'
            f'<span class="bar" style="width:{4 * node.reached:.2f}rem"></span>'
            f'<span class="figure">{figures}</span>{_below(step, index)}</li>'
        )
    return f"<ul>{''.join(items)}</ul>" if items else ""


def _token(text: str) -> str:
    return escape(text).replace("\n", "↵")
