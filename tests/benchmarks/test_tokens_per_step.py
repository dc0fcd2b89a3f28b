# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest

from benchmarks.serving.texts import Prompts
from benchmarks.serving.tokens_per_step import Options, agreed, counted_tokens_per_step
from redrafter_training.trainer.acceptance import Drafting
from redrafter_vllm.bench.acceptance import DraftCounters


def test_tokens_per_step_from_counters() -> None:
    # Four verifications that accept 0, 1, 1 and 3 drafts emit 1 + 2 + 2 + 4 = 9 tokens.
    assert counted_tokens_per_step(DraftCounters(4, (3, 1, 1, 0))) == 9 / 4


def test_a_run_without_drafts_is_an_error() -> None:
    with pytest.raises(ValueError, match="no draft"):
        counted_tokens_per_step(DraftCounters(0, ()))


def test_the_node_budget_holds_all_beams() -> None:
    options = Options(Path("t"), Path("d"), Prompts(4, 8), beam_widths=(1, 8), beam_length=5)
    assert options.draftings == [Drafting(1, 5, 5), Drafting(8, 5, 40)]
    assert options.window == 1024 - 2 * 41  # two steps of a root and 40 nodes


@pytest.mark.parametrize(
    ("difference", "same_text", "expected"),
    [(0.029, True, True), (-0.029, True, True), (0.031, True, False), (-0.031, True, False), (0.0, False, False)],
)
def test_agreement_needs_close_figures_on_the_same_text(difference: float, same_text: bool, expected: bool) -> None:
    rows = [
        {"served": {"same_text": True}, "difference": 0.0},
        {"served": {"same_text": same_text}, "difference": difference},
    ]
    assert agreed({"results": rows}) is expected
