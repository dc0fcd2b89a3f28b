# SPDX-License-Identifier: Apache-2.0
"""Quantised targets, in the layouts of compressed-tensors: same tokens as plain vLLM on the same checkpoint."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.engine.conftest import MakeEngine
from tests.engine.generation import CHAIN, TREE, params, random_prompts
from tests.engine.scripted import assert_identical, run_both, same_clear_choices
from tests.models import VOCAB, save_random_drafter, save_random_llama

GROUP = 32


def to_int8(weight: Tensor) -> dict[str, Tensor]:
    """One scale per output row."""
    scale = weight.abs().amax(1, keepdim=True) / 127
    return {"": (weight / scale).round().to(torch.int8), "_scale": scale}


def to_fp8(weight: Tensor) -> dict[str, Tensor]:
    """One scale per output row; 448 is the largest e4m3 number."""
    scale = weight.abs().amax(1, keepdim=True) / 448
    return {"": (weight / scale).to(torch.float8_e4m3fn), "_scale": scale}


def to_int4(weight: Tensor) -> dict[str, Tensor]:
    """One scale per group of inputs; eight values, shifted by 8, in an int32, the first one lowest."""
    rows = weight.shape[0]
    grouped = weight.view(rows, -1, GROUP)
    scale = grouped.abs().amax(-1, keepdim=True) / 7
    nibbles = (grouped / scale).round().clamp(-8, 7).to(torch.int32).add(8).view(rows, -1, 8)
    packed = (nibbles << torch.arange(0, 32, 4, dtype=torch.int32)).sum(-1, dtype=torch.int32)
    return {"_packed": packed, "_scale": scale.squeeze(-1), "_shape": torch.tensor(weight.shape)}


def scheme(bits: int, kind: str, strategy: str, **options: Any) -> dict[str, Any]:
    return {"num_bits": bits, "type": kind, "symmetric": True, "strategy": strategy, "dynamic": False, **options}


Quantise = Callable[[Tensor], dict[str, Tensor]]

# Name of the layout, the tensors stored for a weight, and the schemes of weights and of inputs.
FORMATS: dict[str, tuple[str, Quantise, dict[str, Any], dict[str, Any] | None]] = {
    "w8a8-int8": ("int-quantized", to_int8, scheme(8, "int", "channel"), scheme(8, "int", "token", dynamic=True)),
    "w8a8-fp8": ("float-quantized", to_fp8, scheme(8, "float", "channel"), scheme(8, "float", "token", dynamic=True)),
    "w4a16": ("pack-quantized", to_int4, scheme(4, "int", "group", group_size=GROUP), None),
}


def save_quantised(path: Path, kind: str, *, part: str = "proj", layer_type: str = "Linear") -> Path:
    """A random Llama whose tensors named `*part*` are quantised."""
    layout, quantise, weights, inputs = FORMATS[kind]
    save_random_llama(path)
    stored: dict[str, Tensor] = {}
    for name, tensor in load_file(path / "model.safetensors").items():
        stored |= (
            {name + suffix: value for suffix, value in quantise(tensor).items()} if part in name else {name: tensor}
        )
    save_file(stored, path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((path / "config.json").read_text())
    group = {"targets": [layer_type], "weights": weights, "input_activations": inputs}
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": layout,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }
    (path / "config.json").write_text(json.dumps(config))
    save_random_drafter(path / "redrafter")
    return path


@pytest.mark.parametrize(
    ("kind", "kernels"),
    [("w8a8-int8", "onednn"), ("w8a8-int8", "sgl"), ("w8a8-fp8", "onednn")],
    indirect=["kernels"],
)
def test_eight_bits(make_engine: MakeEngine, tmp_path: Path, kind: str, kernels: str) -> None:
    if (kind, kernels) == ("w8a8-int8", "sgl"):
        pytest.skip("vLLM's INT8 kernel for AMX takes no fp32, plain vLLM's layers neither: test_in_bf16 has it")
    target = save_quantised(tmp_path / "target", kind)
    plain = make_engine(target)
    assert_identical(plain, make_engine(target, TREE))
    assert_identical(plain, make_engine(target, CHAIN))


@pytest.mark.parametrize(
    ("kind", "kernels"), [("w8a8-int8", "sgl"), ("w4a16", "onednn"), ("w4a16", "sgl")], indirect=["kernels"]
)
def test_in_bf16(make_engine: MakeEngine, tmp_path: Path, kind: str, kernels: str) -> None:
    """The kernels for bf16 only, in which a row is rounded differently in a batch of another size."""
    if kind == "w4a16" and torch.version.cuda is None and not hasattr(torch.ops._C, "cpu_gemm_wna16"):
        pytest.skip("vLLM's build for this processor has no 4-bit kernel, for plain vLLM neither")
    target, options = save_quantised(tmp_path / "target", kind), {"dtype": "bfloat16"}
    plain, tree = make_engine(target, **options), make_engine(target, TREE, **options)
    sampling = params(temperature=0.0, ignore_eos=True, max_tokens=32, logprobs=2)
    # 8-bit activations increase differences in rounding.
    gap, least = (0.2, 50) if kind == "w8a8-int8" else (0.1, 100)
    assert same_clear_choices(*run_both(plain, tree, random_prompts(8, VOCAB, longest=120), sampling), gap) > least


def test_a_quantised_embedding(make_engine: MakeEngine, tmp_path: Path) -> None:
    target = save_quantised(tmp_path / "target", "w4a16", part="embed_tokens", layer_type="Embedding")
    make_engine(target)
    with pytest.raises(ValueError, match="token embedding, which CompressedTensorsEmbeddingWNA16Int has quantised"):
        make_engine(target, TREE)
