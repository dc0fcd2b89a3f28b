# SPDX-License-Identifier: Apache-2.0
"""Draft trees as a page that needs no other file."""

from collections.abc import Mapping, Sequence
from html import escape

from redrafter_vllm.inspection.trees import Choice, Drawing, Node, Step
from redrafter_vllm.utils import html_page

_STYLE = """
ul { list-style: none; margin: 0; padding-left: 1.2rem; border-left: 1px solid #d4d9e2; }
li { margin: .2rem 0; white-space: nowrap; }
.token { font-family: ui-monospace, monospace; background: #eef1f6; border-radius: .3rem; padding: .1rem .45rem;
  white-space: pre; }
.accepted > .token { background: #bfe8c8; }
.root { background: #1c2330; color: white; }
.bar { display: inline-block; height: .5rem; background: #8ea3c9; border-radius: .25rem; margin: 0 .35rem 0 .5rem; }
.figure { font-size: .8rem; }
.drafter { color: #8a5a00; }
.survival { color: #3c5f9e; }
.target { color: #1d7a3a; }
.says { color: #5b6577; white-space: pre; }
.legend { font-size: .85rem; display: grid; grid-template-columns: max-content 1fr; gap: 0 .8rem; }
.legend dd { margin: 0; color: #5b6577; }
.answer { white-space: pre-wrap; background: #f6f8fb; padding: 1rem; border-radius: .5rem; }
.answer mark { background: #bfe8c8; }
.steps { display: grid; grid-template-columns: repeat(auto-fill, minmax(22rem, 1fr)); gap: 0 1.5rem; }
.steps section { overflow-x: auto; font-size: .9rem; }
.steps h2 { font-size: .92rem; margin-top: 1.2rem; white-space: nowrap; }
"""
_LEGEND = """
<p class="note">Each step starts from the last token of the text, which is dark. Below it is its draft tree: what the
target says is green where it was drafted. At each token are, in this order,</p>
<dl class="legend">
<dt><span class="drafter">drafter</span></dt><dd>the drafter's probability for the token after the one above it;
<em>copy</em>: the text has said it before, behind the same tokens;</dd>
<dt><span class="survival">survival</span></dt><dd>also as the bar: the probability that the token and all above it are
accepted, as serving expects at first: {calibration};</dd>
<dt><span class="target">target</span></dt><dd>the target's probability for the token after the one above it;</dd>
<dt><span class="says">→ token</span></dt><dd>what the target says after it, and how probable it finds that.</dd>
</dl>
"""


def trees_page(prompt: str, facts: Mapping[str, str], drawing: Drawing) -> str:
    """Prompt, answer with the accepted drafts marked, a tree for each step, facts about the drafter."""
    steps = drawing.steps
    parts = [
        html_page.paragraph(f"{drawing.rate}; tokens from accepted drafts are green."),
        f'<p class="answer">{_answer(steps)}</p>',
        _LEGEND.format(calibration=escape(drawing.calibration)),
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
        f'<span class="token root">{_token(step.root)}</span> <span class="figure">{_says(step.says)}</span>'
        f"{_below(step, -1)}</section>"
    )


def _below(step: Step, parent: int) -> str:
    items = []
    for index in step.children(parent):
        node = step.nodes[index]
        kind = ' class="accepted"' if node.accepted else ""
        items.append(
            f'<li{kind}><span class="token">{_token(node.text)}</span>'
            f'<span class="bar" style="width:{4 * node.survival:.2f}rem"></span>'
            f'<span class="figure">{_figures(node)}</span>{_below(step, index)}</li>'
        )
    return f"<ul>{''.join(items)}</ul>" if items else ""


def _figures(node: Node) -> str:
    """In the order and the colours of the legend."""
    figures = (
        ("drafter", "copy" if node.drafter is None else f"{node.drafter:.0%}"),
        ("survival", f"{node.survival:.1%}"),
        ("target", f"{node.target:.0%}"),
    )
    return " ".join([*(f'<span class="{kind}">{text}</span>' for kind, text in figures), _says(node.says)])


def _says(choice: Choice) -> str:
    return f'<span class="says">→ {_token(choice.text)} {choice.probability:.0%}</span>'


def _token(text: str) -> str:
    return escape(text).replace("\n", "↵")
