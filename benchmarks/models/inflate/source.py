# SPDX-License-Identifier: Apache-2.0
"""The small target: its config, checked, and its tensors, read one at a time."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from redrafter_vllm.predict.shapes import CONFIG_FILE, LlamaShape, ShapeError, llama_shape, read_json

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
# Types that scale each frequency separately, independent of the size of a head.
ROPE_TYPES = ("default", "linear", "llama3")


class SmallLlama:
    """A Llama in a folder. Raises ShapeError if it cannot be inflated."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = read_json(folder / CONFIG_FILE)
        self.shape: LlamaShape = llama_shape(self.config, str(folder))
        self.eps = float(self.config.get("rms_norm_eps", 1e-6))
        self._check()
        self._files = self._find_tensors()

    def read(self, name: str) -> Tensor:
        """A tensor in float32."""
        if name == "lm_head.weight" and self.shape.tie_word_embeddings:
            name = "model.embed_tokens.weight"
        with safe_open(self._files[name], framework="pt") as weights:
            tensor: Tensor = weights.get_tensor(name)
        expected = self.shape.tensors[name]
        if tuple(tensor.shape) != expected:
            raise ShapeError(f"{name} in {self.folder} has shape {list(tensor.shape)}, expected {list(expected)}.")
        return tensor.to(torch.float32)

    @property
    def rope_theta(self) -> float:
        rope = self.config.get("rope_parameters") or {}
        return float(rope.get("rope_theta") or self.config.get("rope_theta") or 10_000.0)

    def with_rope_theta(self, theta: float) -> dict[str, Any]:
        """The config with another base of the rotary frequencies, under the key that it uses."""
        if self.config.get("rope_parameters"):
            return self.config | {"rope_parameters": self.config["rope_parameters"] | {"rope_theta": theta}}
        return self.config | {"rope_theta": theta}

    def _check(self) -> None:
        config = self.config
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        rope_type = rope.get("rope_type") or rope.get("type") or "default"
        reasons = {
            f"is of model_type {config['model_type']}, not llama": config["model_type"] != "llama",
            "has biases": config.get("attention_bias") or config.get("mlp_bias"),
            f"has the activation {config.get('hidden_act')}, not silu": config.get("hidden_act", "silu") != "silu",
            "is quantised": config.get("quantization_config"),
            f"has rotary frequencies of type {rope_type}, which depend on the size of a head": rope_type
            not in ROPE_TYPES,
            "rotates a part of each head only": rope.get("partial_rotary_factor", 1.0) != 1.0,
            f"has rms_norm_eps {self.eps}, of which the constant cannot take a part": self.eps <= 0,
        }
        for reason, applies in reasons.items():
            if applies:
                raise ShapeError(f"{self.folder} cannot be inflated: it {reason}.")

    def _find_tensors(self) -> dict[str, Path]:
        index = self.folder / INDEX_FILE
        names = sorted(set(read_json(index)["weight_map"].values())) if index.is_file() else [WEIGHTS_FILE]
        found: dict[str, Path] = {}
        for file in (self.folder / name for name in names):
            try:
                with safe_open(file, framework="pt") as weights:
                    found |= dict.fromkeys(weights.keys(), file)
            except (SafetensorError, OSError) as error:
                raise ShapeError(f"{file} cannot be read as safetensors ({error}).") from None
        if missing := [name for name in self.shape.tensors if name not in found]:
            raise ShapeError(f"{self.folder} lacks {', '.join(missing[:4])}.")
        return found
