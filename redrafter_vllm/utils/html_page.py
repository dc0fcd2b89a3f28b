# SPDX-License-Identifier: Apache-2.0
"""The parts of a page of HTML that needs no other file: tables of facts and figures, drawings.

Every function escapes the texts that it is given, and returns HTML.
"""

import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; color: #1c2330;
  background: white; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.05rem; margin-top: 2rem; }
table { border-collapse: collapse; }
td, th { padding: .15rem 1.2rem .15rem 0; vertical-align: top; text-align: left; overflow-wrap: anywhere; }
th { color: #5b6577; font-weight: normal; border-bottom: 1px solid #d4d9e2; }
.facts td:first-child { color: #5b6577; white-space: nowrap; }
.figures td:not(:first-child), .figures th:not(:first-child) { text-align: right;
  font-variant-numeric: tabular-nums; }
figure { margin: 1rem 0; } figure svg { max-width: 100%; height: auto; }
figcaption, .note { color: #5b6577; font-size: .85rem; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f6f8fb; padding: 1rem; border-radius: .5rem; }
"""


def page(title: str, parts: Iterable[str], *, style: str = "") -> str:
    """A whole page: `title` as its heading, then `parts`, which are HTML. `style` is CSS that only this page needs."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
        f"<style>{_STYLE}{style}</style></head><body><h1>{escape(title)}</h1>{''.join(parts)}</body></html>\n"
    )


def heading(text: str) -> str:
    return f"<h2>{escape(text)}</h2>"


def paragraph(text: str, *, note: bool = False) -> str:
    """A paragraph; a `note` is smaller and pale."""
    kind = ' class="note"' if note else ""
    return f"<p{kind}>{escape(text)}</p>"


def preformatted(text: str) -> str:
    """Commands or configuration, with their line breaks."""
    return f"<pre>{escape(text)}</pre>"


def facts_table(facts: Mapping[str, object]) -> str:
    """A label and a text in each row."""
    rows = "".join(f"<tr><td>{escape(label)}</td><td>{escape(str(text))}</td></tr>" for label, text in facts.items())
    return f'<table class="facts">{rows}</table>'


def figures_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table with a line of headings; all columns but the first hold figures and are aligned to the right."""
    titles = "".join(f"<th>{escape(title)}</th>" for title in head)
    body = "".join(f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows)
    return f'<table class="figures"><tr>{titles}</tr>{body}</table>'


def drawing(figure: Any, description: str) -> str:
    """A matplotlib `Figure` as SVG inside the page, whose texts stay texts; `description` is for readers that cannot
    see it, and stands below it.
    """
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    _, start, rest = buffer.getvalue().partition("<svg")  # without the declaration, which is for a file of its own
    label = escape(description)
    return f'<figure>{start} role="img" aria-label="{label}"{rest}<figcaption>{label}</figcaption></figure>'
