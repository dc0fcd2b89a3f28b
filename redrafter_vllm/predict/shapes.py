# SPDX-License-Identifier: Apache-2.0
"""Sizes of Llama targets and of their drafters, by name or from a `config.json`; no weights are read."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from math import prod
from pathlib import Path
from typing import Any

from redrafter_vllm.checkpoint.config import DrafterConfig
from redrafter_vllm.checkpoint.io import read_config

CONFIG_FILE = "config.json"
# Decoders with Llama's matrices. Some also have biases or norms, a ten-thousandth of the parameters.
LLAMA_LIKE = ("llama", "mistral", "qwen2", "qwen3")

TensorShapes = dict[str, tuple[int, ...]]


class ShapeError(ValueError):
    """A model or shape that cannot be used; the message says why."""


@dataclass(frozen=True)
class LlamaShape:
    """Sizes of a dense decoder. Raises ShapeError where they contradict each other."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    tie_word_embeddings: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "tie_word_embeddings":
                continue
            if type(value) is not int or value < 1:
                raise ShapeError(f"{field.name} must be a positive integer, not {value!r}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ShapeError(
                f"{self.num_attention_heads} attention heads cannot share {self.num_key_value_heads} key-value heads "
                "evenly"
            )
        if self.head_dim % 2:
            raise ShapeError(f"head_dim {self.head_dim} is odd: rotary positions rotate pairs of dimensions")

    @property
    def tensors(self) -> TensorShapes:
        """Shapes of all stored tensors, by Hugging Face's names, in the order of a forward pass."""
        hidden, inner = self.hidden_size, self.intermediate_size
        queries, keys = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        layer = {
            "input_layernorm": (hidden,),
            "self_attn.q_proj": (queries, hidden),
            "self_attn.k_proj": (keys, hidden),
            "self_attn.v_proj": (keys, hidden),
            "self_attn.o_proj": (hidden, queries),
            "post_attention_layernorm": (hidden,),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }
        shapes: TensorShapes = {"model.embed_tokens.weight": (self.vocab_size, hidden)}
        for index in range(self.num_hidden_layers):
            shapes |= {f"model.layers.{index}.{name}.weight": shape for name, shape in layer.items()}
        shapes["model.norm.weight"] = (hidden,)
        if not self.tie_word_embeddings:
            shapes["lm_head.weight"] = (self.vocab_size, hidden)
        return shapes

    @property
    def num_parameters(self) -> int:
        return count(self.tensors)


# Vicuna has the sizes of Llama 1 and 2. Two are for a CPU: about 0.1 and 1 billion parameters, heads of 64.
# `smollm2-1b` is for SmolLM2-135M: its vocabulary, layers and tied embeddings, four times its hidden size.
SHAPES: Mapping[str, LlamaShape] = {
    "llama-0.1b": LlamaShape(32_000, 1024, 2816, 4, 16, 8, 64),
    "llama-1b": LlamaShape(32_000, 2048, 5632, 22, 32, 4, 64),
    "smollm2-1b": LlamaShape(49_152, 2304, 3072, 30, 24, 8, 64, tie_word_embeddings=True),
    "vicuna-7b": LlamaShape(32_000, 4096, 11_008, 32, 32, 32, 128),
    "vicuna-13b": LlamaShape(32_000, 5120, 13_824, 40, 40, 40, 128),
    "llama-2-70b": LlamaShape(32_000, 8192, 28_672, 80, 64, 8, 128),
    "llama-3-8b": LlamaShape(128_256, 4096, 14_336, 32, 32, 8, 128),
    "llama-3-70b": LlamaShape(128_256, 8192, 28_672, 80, 64, 8, 128),
}


def count(shapes: TensorShapes) -> int:
    """Numbers in all tensors."""
    return sum(prod(shape) for shape in shapes.values())


def find_shape(name: str) -> LlamaShape:
    """A shape by its name, or by the path of a `config.json` or its folder. Raises ShapeError."""
    if name in SHAPES:
        return SHAPES[name]
    path = Path(name)
    if not path.exists():
        raise ShapeError(f"There is no shape {name!r}: give a config.json, its folder, or one of {', '.join(SHAPES)}.")
    return llama_shape(read_json(path / CONFIG_FILE if path.is_dir() else path), str(path))


def llama_shape(config: Mapping[str, Any], where: str) -> LlamaShape:
    """The sizes in a parsed `config.json`; `where` is its path, for messages. Raises ShapeError."""
    if config.get("model_type") not in LLAMA_LIKE:
        raise ShapeError(
            f"{where} is of model_type {config.get('model_type')!r}; its shape is known only for "
            f"{', '.join(LLAMA_LIKE)}."
        )
    wanted = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    if missing := [key for key in wanted if not isinstance(config.get(key), int)]:
        raise ShapeError(f"{where} lacks {', '.join(missing)}.")
    sizes = {key: int(config[key]) for key in wanted}
    heads = sizes["num_attention_heads"]
    return LlamaShape(
        **sizes,
        num_key_value_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or sizes["hidden_size"] // heads,
        tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
    )


def read_json(file: Path) -> dict[str, Any]:
    """Raises ShapeError unless `file` holds a JSON object."""
    try:
        parsed = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ShapeError(f"{file} cannot be read as JSON ({error}).") from None
    if not isinstance(parsed, dict):
        raise ShapeError(f"{file} holds no JSON object.")
    return parsed


def drafter_config(path: Path) -> DrafterConfig:
    """The sizes of the drafter in a folder. Raises a `CheckpointError`."""
    return read_config(path)[0]


def published_drafter(target: LlamaShape, *, draft_vocab_size: int | None = None) -> DrafterConfig:
    """The paper's drafter for a target: two ResBlocks as wide as context and state together."""
    return DrafterConfig(target.vocab_size, target.hidden_size, 2 * target.hidden_size, 2, True, draft_vocab_size)


def as_dict(shape: LlamaShape | DrafterConfig) -> dict[str, Any]:
    """The sizes as in a `config.json`."""
    return {key: value for key, value in asdict(shape).items() if value is not None}
