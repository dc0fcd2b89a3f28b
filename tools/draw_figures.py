#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Draws one verified round of the repository's small pair for docs/how_it_works.md: `python -m tools.draw_figures`.

`round.json` holds what the pair computes, the drawings follow from it alone. tests/test_figures.py checks both.
"""

import json
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "tests" / "assets" / "stdlib-llama"
FOLDER = ROOT / "docs" / "assets" / "figures"
DATA = FOLDER / "round.json"
PROMPT = "def read(path):\n    with open(path) as file:\n       "
BEAMS, LENGTH, NODES = 3, 4, 8

CHARACTER, ROW, SHARE = 8.4, 34, 42  # pixels: a character of a token, a row of nodes, a percentage
STYLE = """\
text { font: 14px ui-monospace, monospace; fill: #1c2330; }
.small { font: 12px system-ui, sans-serif; fill: #5b6577; }
.paper { fill: #ffffff; stroke: #d4d9e2; }
.node { fill: #eef1f6; stroke: #b4bece; }
.accepted { fill: #bfe8c8; stroke: #3f9a58; }
.root { fill: #1c2330; stroke: #1c2330; }
.onroot { fill: #ffffff; }
.edge { stroke: #b4bece; fill: none; }
.path { stroke: #3f9a58; stroke-width: 2.5; fill: none; }
.hidden { fill: #ffffff; stroke: #e3e7ee; }
.context { fill: #8ea3c9; stroke: #ffffff; }
.seen { fill: #3c5a99; stroke: #ffffff; }
"""


@dataclass(frozen=True)
class Round:
    """A draft tree, what the target emits in each of its rows, and the walk. Row 0 is the root, row 1 + i node i."""

    prompt: str
    root: str
    tokens: list[str]  # [N]
    parents: list[int]  # [N], −1 under the root
    depths: list[int]  # [N]
    probabilities: list[float]  # [N], of the path to the node
    ancestors: list[list[int]]  # [N, N], 1 where the column is an ancestor of the row, or the row itself
    choices: list[str]  # [1 + N]
    path: list[int]  # accepted nodes
    emitted: list[str]  # tokens that the step emits


def compute() -> Round:
    """Run drafter and target once more: the first round behind the prompt, greedy, in float32 on the CPU."""
    import torch

    from redrafter_vllm.config import DraftingConfig
    from redrafter_vllm.drafting.propose import propose_trees
    from redrafter_vllm.inspection.artist import Artist
    from redrafter_vllm.ops.tree_verify.reference import tree_verify

    drafting = DraftingConfig(BEAMS, LENGTH, NODES)
    artist = Artist(str(TARGET), TARGET / "redrafter", drafting)
    prompt = artist.encode(PROMPT, chat=False)

    def run(ids: list[int]) -> tuple[Any, int]:
        """The hidden state behind the last token, and the token that the target emits there."""
        output = artist.model(torch.tensor([ids]), output_hidden_states=True)
        return output.hidden_states[-1][0, -1], int(output.logits[0, -1].argmax())

    with torch.inference_mode():
        context, root = run(prompt)
        embedding = artist.model.get_input_embeddings().weight
        limit = torch.tensor([BEAMS])
        tree = propose_trees(artist.drafter, embedding, context[None], torch.tensor([root]), limit, drafting)
        tokens, parents = tree.tokens[0].tolist(), tree.parents[0].tolist()
        paths: list[list[int]] = []
        for token, parent in zip(tokens, parents, strict=True):
            paths.append([*(paths[parent] if parent >= 0 else []), token])
        rows = [run([*prompt, root, *path])[1] for path in [[], *paths]]
        valid = torch.arange(NODES)[None] < tree.num_nodes[:, None]
        walk = tree_verify(torch.tensor(rows), torch.tensor([0]), tree.tokens, tree.parents, valid, LENGTH)

    def text(token: int) -> str:
        return str(artist.tokenizer.decode([token], clean_up_tokenization_spaces=False))

    return Round(
        prompt=PROMPT,
        root=text(root),
        tokens=[text(token) for token in tokens],
        parents=parents,
        depths=tree.depths[0].tolist(),
        probabilities=[round(float(each), 4) for each in tree.log_probs[0].exp()],
        ancestors=tree.ancestor_mask()[0].int().tolist(),
        choices=[text(token) for token in rows],
        path=[node for node in walk.path[0].tolist() if node >= 0],
        emitted=[text(token) for token in walk.emitted[0, : int(walk.num_emitted[0])].tolist()],
    )


def tree_figure(drawn: Round) -> str:
    """The tree from left to right, the accepted path in green."""
    rows = _rows(drawn)
    lefts = _lefts(drawn)
    places = [(lefts[depth], 30 + ROW * row) for depth, row in zip(drawn.depths, rows, strict=True)]
    start = (20, 30 + ROW * (min(rows) + max(rows)) / 2)
    edges, boxes = [], [_box(*start, drawn.root, "root")]
    for index, (parent, place) in enumerate(zip(drawn.parents, places, strict=True)):
        accepted = index in drawn.path
        left, top = places[parent] if parent >= 0 else start
        right = left + (_width(drawn.tokens[parent]) + SHARE if parent >= 0 else _width(drawn.root))
        begin, end = (right, top + 12), (place[0], place[1] + 12)
        middle = (begin[0] + end[0]) / 2
        points = [begin, (middle, begin[1]), (middle, end[1]), end]
        line = "M{} C{} {} {}".format(*(f"{x:.1f} {y:.1f}" for x, y in points))
        edges.append(f'<path class="{"path" if accepted else "edge"}" d="{line}"/>')
        boxes.append(_box(*place, drawn.tokens[index], "accepted" if accepted else "node"))
        share = f"{100 * drawn.probabilities[index]:.0f} %"
        boxes.append(_text(place[0] + _width(drawn.tokens[index]) + 5, place[1] + 16, share, "small"))
    return _svg(lefts[-1], 36 + ROW * (max(rows) + 1), [*edges, *boxes], "A draft tree")


def mask_figure(drawn: Round) -> str:
    """Which columns (context, root, nodes) each row attends to."""
    size, left, top = 26, 190, 120
    parts = []
    heads = ["context", drawn.root, *drawn.tokens]
    for column, head in enumerate(heads):
        place = f"{left + size * column + 17} {top - 8}"
        parts.append(f'<text transform="translate({place}) rotate(-55)">{escape(_shown(head))}</text>')
    for row, name in enumerate([drawn.root, *drawn.tokens]):
        label = f"row {row}  {_shown(name)}"
        parts.append(_text(14, top + size * row + 18, label))
        seen = [1, 1, *(drawn.ancestors[row - 1] if row else [0] * len(drawn.tokens))]
        for column, visible in enumerate(seen):
            kind = "hidden" if not visible else "context" if column == 0 else "seen"
            parts.append(_cell(left + size * column, top + size * row, size, kind))
    width = left + size * len(heads) + 90
    return _svg(width, top + size * (1 + len(drawn.tokens)) + 20, parts, "The attention mask of the tree")


def walk_figure(drawn: Round) -> str:
    """The rows of the step: token, place in the text, the target's token, and what becomes of it."""
    columns = (14, 70, 190, 310, 430, 560)
    heads = ("row", "token", "slot", "position", "target says", "")
    parts = [_text(left, 30, head, "small") for left, head in zip(columns, heads, strict=True)]
    accepted = {0, *(1 + node for node in drawn.path)}
    last = 1 + drawn.path[-1] if drawn.path else 0
    for row, token in enumerate([drawn.root, *drawn.tokens]):
        top = 44 + ROW * row
        depth = drawn.depths[row - 1] if row else 0
        kind = "root" if row == 0 else "accepted" if row in accepted else "node"
        says = "accepted" if row in accepted and row else ""
        if row == last:
            says = "accepted; no child is that token" if row else "no child is that token"
        parts += [
            _text(columns[0], top + 17, str(row)),
            _box(columns[1], top, token, kind),
            _text(columns[2], top + 17, f"computed + {row}"),
            _text(columns[3], top + 17, f"computed + {depth}"),
            _box(columns[4], top, drawn.choices[row], "accepted" if row in accepted else "node"),
            _text(columns[5], top + 17, says, "small"),
        ]
    top = 44 + ROW * (1 + len(drawn.tokens))
    emitted = " ".join(_shown(token) for token in drawn.emitted)
    parts.append(_text(14, top + 22, f"emitted: {emitted}   ({len(drawn.emitted)} tokens of one pass)"))
    return _svg(790, top + 44, parts, "The walk through the rows")


FIGURES = {"tree.svg": tree_figure, "mask.svg": mask_figure, "walk.svg": walk_figure}


def _rows(drawn: Round) -> list[float]:
    """The row of each node: leaves one below the other, a parent in the middle of its children."""
    children: dict[int, list[int]] = {}
    for index, parent in enumerate(drawn.parents):
        children.setdefault(parent, []).append(index)
    rows: dict[int, float] = {}
    leaves = 0

    def place(node: int) -> float:
        nonlocal leaves
        if node not in children:
            rows[node], leaves = float(leaves), leaves + 1
        else:
            below = [place(child) for child in children[node]]
            rows[node] = (below[0] + below[-1]) / 2
        return rows[node]

    place(-1)
    return [rows[node] for node in range(len(drawn.tokens))]


def _lefts(drawn: Round) -> list[float]:
    """The left edge of each depth, and behind the last one."""
    lefts = [20.0]
    for depth in range(max(drawn.depths) + 1):
        own = [token for token, at in zip(drawn.tokens, drawn.depths, strict=True) if at == depth]
        widest = max(_width(token) for token in (own if depth else [drawn.root]))
        lefts.append(lefts[-1] + widest + 40 + SHARE)
    return lefts


def _shown(token: str) -> str:
    """A token with its spaces and line breaks visible."""
    return token.replace(" ", "·").replace("\n", "↵")


def _width(token: str) -> float:
    return 16 + CHARACTER * len(_shown(token))


def _box(left: float, top: float, token: str, kind: str) -> str:
    style = "onroot" if kind == "root" else ""
    box = f'<rect class="{kind}" x="{left:.1f}" y="{top:.1f}" width="{_width(token):.1f}" height="24" rx="5"/>'
    return box + _text(left + 8, top + 17, _shown(token), style)


def _text(left: float, top: float, text: str, style: str = "") -> str:
    kind = f' class="{style}"' if style else ""
    return f'<text x="{left:.1f}" y="{top:.1f}"{kind}>{escape(text)}</text>' if text else ""


def _cell(left: float, top: float, size: float, kind: str) -> str:
    return f'<rect class="{kind}" x="{left:.1f}" y="{top:.1f}" width="{size}" height="{size}"/>'


def _svg(width: float, height: float, parts: list[str], title: str) -> str:
    size = f'viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">'
    paper = f'<rect class="paper" x="0.5" y="0.5" width="{width - 1:.0f}" height="{height - 1:.0f}" rx="8"/>'
    body = "\n".join([head, f"<title>{title}</title>", f"<style>\n{STYLE}</style>", paper, *filter(None, parts)])
    return f"{body}\n</svg>\n"


def read() -> Round:
    """The committed round."""
    return Round(**json.loads(DATA.read_text(encoding="utf-8")))


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    drawn = compute()
    DATA.write_text(json.dumps(asdict(drawn), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    for name, draw in FIGURES.items():
        (FOLDER / name).write_text(draw(drawn), encoding="utf-8")


if __name__ == "__main__":
    main()
