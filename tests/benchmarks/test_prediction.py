# SPDX-License-Identifier: Apache-2.0
"""The cost model against published figures: no further from them than docs/predicting.md says."""

import pytest

from benchmarks.models.prediction.__main__ import main, speedups, tables
from benchmarks.models.prediction.check import comparisons, published
from benchmarks.models.prediction.eagle import eagle_round
from redrafter_vllm.predict.shapes import SHAPES
from tests.paths import ROOT

DOCUMENT = (ROOT / "docs" / "predicting.md").read_text(encoding="utf-8")
FOUND = comparisons()


def test_the_document_has_the_tables() -> None:
    assert tables().strip() in DOCUMENT, "paste what python -m benchmarks.models.prediction prints"
    assert speedups().strip() in DOCUMENT, "paste what python -m benchmarks.models.prediction prints"


def test_the_command_prints_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert capsys.readouterr().out == f"{tables()}\n{speedups()}"


def test_every_published_figure_has_a_source_and_is_compared() -> None:
    figures = published()
    assert all(series["source"] for series in figures.values())
    by_drafts, by_batch, paper = figures.values()
    methods = sum(len(method["ms_per_token"]) for method in by_drafts["methods"].values())
    # Series that are compared with their own batch 1 have one comparison less.
    series = sum(len(one["speedup"]) - (one["tokens_per_step"] is None) for one in by_batch["series"])
    sweep = sum(len(speeds) - 1 for speeds in paper["tokens_per_second"].values())
    assert len(FOUND) == 1 + methods + series + sweep == 72


@pytest.mark.parametrize(
    ("table", "series", "cases", "percent"),
    [
        ("vLLM, Llama", "plain", None, 1),
        ("vLLM, Llama", "EAGLE", None, 12),
        ("vLLM, Llama", "EAGLE-3", None, 38),
        ("vLLM, EAGLE", None, None, 10),
        ("ReDrafter in PyTorch", None, {2, 4, 8, 10}, 21),
        ("ReDrafter in PyTorch", None, {20}, 46),
        ("ReDrafter in PyTorch", None, {40, 80}, 62),
    ],
)
def test_errors_are_those_of_the_document(table: str, series: str | None, cases: set[int] | None, percent: int) -> None:
    errors = [
        one.error
        for one in FOUND
        if one.table.startswith(table)
        and (series is None or one.series == series)
        and (cases is None or int(one.case) in cases)
    ]
    assert round(100 * max(map(abs, errors))) == percent
    assert f"{percent} %" in DOCUMENT


def test_an_eagle_head_by_hand() -> None:
    # Queries and outputs 2 · 4096², keys and values 2 · 1024 · 4096, MLP 3 · 14,336 · 4096, two norms of 4096.
    shape = SHAPES["llama-3-8b"]
    layer = 2 * 4096**2 + 2 * 1024 * 4096 + 3 * 14_336 * 4096 + 2 * 4096
    numbers = layer + 2 * 4096**2 + 4096 * 128_256
    work = eagle_round(shape, drafts=3, requests=2, context=100, parallel=1)
    # One layer's cache: keys and values of 8 heads of 128 numbers, 2 bytes each.
    assert work.bytes == 3 * (2 * numbers + 2 * 100 * 2 * 8 * 128 * 2)
    assert work.operations == 2 * 2 * 3 * numbers
    third = eagle_round(shape, drafts=3, requests=2, context=0, parallel=1, is_eagle3=True)
    # Double input of queries, keys and values; 32,000 draft tokens; three hidden states are joined once.
    assert third.bytes == 2 * (3 * (layer + 4096 * (4096 + 2048) + 4096 * 32_000) + 3 * 4096**2)
