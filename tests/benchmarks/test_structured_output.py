# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest

from benchmarks.serving import structured_output
from benchmarks.serving.structured_output import Options, mask_times
from benchmarks.serving.texts import Prompts
from redrafter_training.trainer.acceptance import Drafting


def test_masks_are_timed_along_a_whole_text() -> None:
    found = mask_times(400)
    assert 0 < found["median"] <= found["greatest"] and found["mean"] <= found["greatest"]


def test_a_text_that_violates_the_schema_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(structured_output, "JSON_TEXT", b'{"size": 17}')
    with pytest.raises(ValueError, match="own schema"):
        mask_times(400)


def test_chain_and_tree_have_the_same_length() -> None:
    assert Options(Path("t"), Path("d"), Prompts(4, 8)).draftings == {
        "chain": Drafting(1, 4, 4),
        "tree": Drafting(4, 4, 16),
    }
