# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

import pytest
import torch

from benchmarks.models import products
from redrafter_vllm.predict.shapes import LlamaShape
from tests.ops.native import needs_packed_linear

SIZES = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3}


def test_what_a_layer_multiplies() -> None:
    """4 heads of 16, 2 of them with keys: 64 + 2 · 32 outputs; and 2 · 96 of gate and up."""
    shape = LlamaShape(**SIZES, num_attention_heads=4, num_key_value_heads=2, head_dim=16)
    assert products.products_of_a_layer(shape) == [(128, 64), (64, 64), (192, 64), (64, 96)]


@needs_packed_linear
def test_a_small_measurement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(products, "LEAST_BYTES", 1 << 18)
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"model_type": "llama", "num_attention_heads": 4, "num_key_value_heads": 2, **SIZES}))
    given = ["--shape", str(config), "--rows", "1", "9", "--rounds", "2", "--out", str(tmp_path / "out")]
    assert products.main(given) == 0
    (file,) = (tmp_path / "out").iterdir()
    report = json.loads(file.read_text())
    assert report["bytes"] == 3 * 2 * (128 * 64 + 64 * 64 + 192 * 64 + 64 * 96)
    assert [row["rows"] for row in report["results"]] == [1, 9]
    assert all(min(row["vLLM"], row["packed"], row["served"]) > 0 for row in report["results"])
    assert "times as fast" in capsys.readouterr().out


@needs_packed_linear
def test_a_wrong_product_is_not_timed() -> None:
    weight = torch.randn(32, 16).bfloat16()
    with pytest.raises(ValueError, match=r"packed: a product of \(32, 16\) is off by"):
        products.checked({"packed": [products.by_packed(-weight)]}, [weight])


def test_options_that_cannot_be_measured(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        products.parse_args(["--rows", "0"])
    assert "must be at least 1" in capsys.readouterr().err
