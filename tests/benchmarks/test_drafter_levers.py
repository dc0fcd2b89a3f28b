# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

import pytest

from benchmarks.serving.drafter_levers import main
from tests.paths import ASSET


@pytest.mark.slow
def test_a_small_measurement(tmp_path: Path) -> None:
    command = ["--target", str(ASSET), "--prompts", "2", "--new-tokens", "16", "--out", str(tmp_path)]
    assert main([*command, "--draft-vocab-size", "512", "8"]) == 0
    (file,) = tmp_path.glob("drafter-levers_*.json")
    rows = json.loads(file.read_text())["results"]
    assert [(row["draft_tokens"], row["quantization"]) for row in rows] == [
        (size, quantization) for quantization in (None, "fp8", "int8") for size in (2048, 512, 8)
    ]
    full, quarter, tiny = rows[:3]
    # Fewer tokens cover less of what is emitted, accept fewer drafts and read fewer bytes.
    assert 1 == full["coverage_of_emitted"] > quarter["coverage_of_emitted"] > tiny["coverage_of_emitted"] > 0
    assert full["tokens_per_step"] > tiny["tokens_per_step"] >= 1
    assert full["part_of_naive_bytes"] > quarter["part_of_naive_bytes"] > tiny["part_of_naive_bytes"]
    # Of 3.4 MB four steps of 1.7 million weights; the head is 2048 x 512 of them, a half of the first block 512 x 256.
    assert full["part_of_naive_bytes"] == pytest.approx(1 - 3 * 131_072 / (4 * 1_705_000), rel=2e-3)
    assert rows[6]["part_of_naive_bytes"] == pytest.approx(full["part_of_naive_bytes"] / 2, rel=0.02)
