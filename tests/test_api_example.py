# SPDX-License-Identifier: Apache-2.0
import re
from pathlib import Path

import pytest

from tests.paths import ROOT

API = ROOT / "docs" / "reference" / "api.md"


def test_the_documented_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", API.read_text(encoding="utf-8"), re.DOTALL)
    (example,) = (block for block in blocks if "beam_search(" in block)
    names: dict = {}
    exec(example, names)
    assert names["beams"].tokens.shape == (2, 3, 4) and names["beams"].paths().shape == (2, 4, 3)
    assert names["tree"].ancestor_mask().shape == (2, 8, 8)
