# SPDX-License-Identifier: Apache-2.0
"""The Python of docs/offline.md runs, one block after the other as a reader would."""

import re
from typing import Any

import pytest

from tests.document_blocks import ALL
from tests.engine.conftest import MakeEngine
from tests.paths import ROOT

BLOCKS = [block for block in ALL if block.said == "run: engine"]


def test_blocks_run(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import vllm

    def shared(model: str, speculative_config: dict[str, Any], **options: Any) -> Any:
        return make_engine(ROOT / model, speculative_config, skip_tokenizer_init=False, **options)

    monkeypatch.setattr(vllm, "LLM", shared)
    assert [block.page.name for block in BLOCKS] == ["offline.md", "offline.md"]
    names: dict[str, Any] = {}
    for block in BLOCKS:
        exec(block.text, names)
    assert len(names["outputs"]) == len(names["prompts"]) == 3
    measured = re.search(r"^([\d.]+) tokens per step$", capsys.readouterr().out, re.MULTILINE)
    assert measured is not None and 1.2 < float(measured[1]) <= 5  # at most a path of four and one more
    assert len(names["one"].outputs[0].token_ids) == 40
