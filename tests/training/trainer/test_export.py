# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

import pytest
import torch

from redrafter_training.trainer.export import export
from redrafter_vllm.checkpoint.config import DrafterConfig
from redrafter_vllm.model.drafter import Drafter

CONFIG = DrafterConfig(vocab_size=7, hidden_size=4, exit_dim=8, num_draft_layers=1)


def test_new_and_existing_directories(tmp_path: Path) -> None:
    torch.manual_seed(0)
    out = tmp_path / "deep" / "drafter"
    for number in (1, 2):
        drafter = Drafter(CONFIG)
        export(drafter, out, {"number": number}, overwrite=True)
        assert json.loads((out / "training.json").read_text()) == {"number": number}
        loaded = Drafter.from_pretrained(out)
        assert all(
            torch.equal(a.bfloat16(), b.bfloat16())
            for a, b in zip(drafter.parameters(), loaded.parameters(), strict=True)
        )
        (out / "notes.txt").write_text("mine")
    assert (out / "notes.txt").read_text() == "mine"
    assert [path.name for path in out.parent.iterdir()] == ["drafter"]


def test_failure_keeps_the_old_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "drafter"
    export(Drafter(CONFIG), out, {})
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        export(Drafter(CONFIG), out, {"new": True}, overwrite=True)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["drafter"]
