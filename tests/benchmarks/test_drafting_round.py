# SPDX-License-Identifier: Apache-2.0
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from vllm.platforms import current_platform

from benchmarks.serving.drafting_round import MAX_DEVIATION, checked, deviation
from redrafter_vllm.model.packed import Linear, PackedDrafter
from redrafter_vllm.model.quantization import rounding_linear
from tests.cpu_kernels import CHOICES
from tests.oracles import random_drafter


@pytest.mark.process
@pytest.mark.skipif(not current_platform.is_cpu(), reason="expects the formats of a CPU")
@pytest.mark.parametrize("kernels", CHOICES)
def test_a_small_measurement(tmp_path: Path, kernels: str) -> None:
    """In a separate process, as an engine in this one may have vLLM's process groups."""
    target = tmp_path / "config.json"
    sizes = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    target.write_text(json.dumps({"model_type": "llama", "num_attention_heads": 1, **sizes}))
    options = ["--shape", str(target), "--draft-vocab-size", "40", "--threads", "1", "2", "--rounds", "2"]
    command = [sys.executable, "-m", "tests.cpu_kernels", kernels, "benchmarks.serving.drafting_round", *options]
    subprocess.run([*command, "--out", str(tmp_path)], check=True, timeout=200)
    (file,) = tmp_path.glob("drafting-round_*.json")
    rows = json.loads(file.read_text())["results"]
    names = ["as loaded", "packed", "packed, W·E as a table", "int8", "int8, W·E as a table"]
    assert [(row["threads"], row["way"]) for row in rows] == [(threads, name) for threads in (1, 2) for name in names]
    assert rows[0]["logits_off_by"] == 0 < rows[3]["logits_off_by"] < 0.05
    for row in rows:
        assert 0 < row["least_seconds"] <= row["median_seconds"]
    # Four steps of W and U 32 x 32, L 64 x 64 twice of which a half once, head 40 x 64, biases 32 + 64; rows 1 + 3 * 4.
    steps = 4 * (2 * 1024 + 32 + 64 * 32 + 64 * 64 + 64 + 40 * 64)
    assert rows[0]["bytes"] == 2 * (steps + 64 * 32 + 64 + 13 * 32)


def test_a_product_with_wrong_scales_is_not_timed() -> None:
    """The scales of the rows are in another order, as a kernel with another layout may expect them."""
    drafter = random_drafter(hidden_size=32, exit_dim=64, vocab_size=96)

    def rounded(weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
        return rounding_linear("int8", weight, bias)

    def shuffled(weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
        size = weight.abs().amax(1, keepdim=True)
        return rounding_linear("int8", weight / size * size.flip(0), bias)

    off = deviation(PackedDrafter(drafter, rounded), drafter)
    assert checked("rounded", off, MAX_DEVIATION["int8"]) == off > 0
    with pytest.raises(ValueError, match=r"shuffled: the logits are off by .* more than 5%"):
        checked("shuffled", deviation(PackedDrafter(drafter, shuffled), drafter), MAX_DEVIATION["int8"])
    with pytest.raises(ValueError, match="off by nan"):
        checked("shuffled", float("nan"), 0.1)
