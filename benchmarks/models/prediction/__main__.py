# SPDX-License-Identifier: Apache-2.0
"""Predicted beside published figures: `python -m benchmarks.models.prediction` prints tables of docs/predicting.md."""

import argparse
import sys
from collections.abc import Sequence
from statistics import median

from benchmarks.models.prediction.check import Comparison, comparisons
from redrafter_vllm.checkpoint.card import markdown_table
from redrafter_vllm.cli.predict import ACCEPTANCE, TREES
from redrafter_vllm.predict.acceptance import find_acceptance
from redrafter_vllm.predict.gpu import known_gpus
from redrafter_vllm.predict.prediction import Setup, predict, smallest_parallel
from redrafter_vllm.predict.shapes import find_shape, published_drafter
from redrafter_vllm.predict.trees import parse_tree, tree_text

TARGETS = ("vicuna-7b", "vicuna-13b", "llama-3-8b", "llama-3-70b")
GPU, CONTEXT, BATCHES = "h100", 1024, (1, 4, 16, 64)
ACCEPTANCES = (ACCEPTANCE, "smollm2")  # the paper's, and that of the committed drafter


def tables() -> str:
    """Tables with published figures: a row for each series, in its cells prediction, published figure and error."""
    found = comparisons()
    names = list(dict.fromkeys(one.table for one in found))
    return "\n".join(_table(name, [one for one in found if one.table == name]) for name in names)


def speedups() -> str:
    """Predicted speed-ups of the named targets with the paper's drafter, by each of `ACCEPTANCES`."""
    gpu, trees = known_gpus()[GPU], [parse_tree(text) for text in TREES.split()]
    acceptances = [find_acceptance(name) for name in ACCEPTANCES]
    rows = []
    for name in TARGETS:
        shape = find_shape(name)
        parallel = smallest_parallel(gpu, shape)
        setup = Setup(gpu, parallel, shape, published_drafter(shape), CONTEXT)
        found = [predict(setup, acceptance, trees, BATCHES) for acceptance in acceptances]
        for tree in trees:
            speeds = [[one.speedup for one in predictions if one.tree == tree] for predictions in found]
            cells = (" / ".join(f"{speed:.2f}" for speed in at_batch) for at_batch in zip(*speeds, strict=True))
            rows.append([f"{name} on {parallel}, {tree_text(tree)}", *cells])
    return markdown_table(["", *BATCHES], rows) + "\n"


def _table(title: str, found: Sequence[Comparison]) -> str:
    cases = sorted({one.case for one in found}, key=int)
    cells = {(one.series, one.case): one for one in found}
    rows = []
    for series in dict.fromkeys(one.series for one in found):
        errors = [abs(one.error) for one in found if one.series == series]
        shown = [_cell(cells.get((series, case))) for case in cases]
        rows.append([series, *shown, f"{100 * median(errors):.0f} %"])
    return f"**{title}**\n\n{markdown_table(['', *cases, 'median'], rows)}\n"


def _cell(one: Comparison | None) -> str:
    return "–" if one is None else f"{one.predicted:.2f} / {one.published:.2f}, {100 * one.error:+.0f} %"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.models.prediction",
        description="How far the cost model of redrafter predict is from published figures, as Markdown: in each cell "
        "the prediction, the published figure and the error; in the last column the median of absolute errors. Then "
        "speed-ups predicted with the acceptance of the paper and, behind it, of the committed drafter.",
    )
    parser.parse_args(argv)
    print(f"{tables()}\n{speedups()}", end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
