# SPDX-License-Identifier: Apache-2.0
"""A small Llama in a larger Llama's shape, tensor by tensor."""

from math import floor, log2, sqrt
from typing import Any

import torch
from torch import Tensor

from benchmarks.models.inflate.placement import Axis, Piece, empty, place, place_output
from benchmarks.models.inflate.source import SmallLlama
from redrafter_vllm.predict.shapes import LlamaShape, ShapeError, as_dict

SUPPRESSION = 2.0**24


class InflatedTarget:
    """Contents of all tensors of the large model. Raises ShapeError if the small one does not fit in the shape."""

    def __init__(self, small: SmallLlama, shape: LlamaShape) -> None:
        self.small, self.shape = small, shape
        _check(small.shape, shape)
        hidden = small.shape.hidden_size
        self.hidden = Axis.first(hidden, shape.hidden_size)
        # Tied embeddings would read it back into every logit; as they need the same vocabulary, it has no use there.
        has_constant = shape.hidden_size > hidden and not shape.tie_word_embeddings
        self.constant = hidden if has_constant else None
        # A power of two, exact in every type, whose square is at most half of hidden * eps.
        self.kappa = 2.0 ** floor(log2(hidden * small.eps / 2) / 2) if self.constant is not None else 0.0
        self.eps = (hidden * small.eps - self.kappa**2) / shape.hidden_size
        self.norm_scale = sqrt(hidden / shape.hidden_size)
        pairs, self.rope_theta = rotary_layout(small.shape.head_dim, shape.head_dim, small.rope_theta)
        self.queries, self.keys = head_axes(small.shape, shape, pairs)
        self.inner = Axis.first(small.shape.intermediate_size, shape.intermediate_size)
        self.vocab = Axis.first(small.shape.vocab_size, shape.vocab_size)

    @property
    def config(self) -> dict[str, Any]:
        """The large model's `config.json`."""
        return self.small.with_rope_theta(self.rope_theta) | as_dict(self.shape) | {"rms_norm_eps": self.eps}

    def piece(self, name: str) -> Piece:
        """Contents of one of `shape.tensors`."""
        if name == "model.embed_tokens.weight":
            return self._embedding()
        if name == "model.norm.weight":
            return self._final_norm()
        if name == "lm_head.weight":
            head = self.small.read(name)
            return place_output(head, self.vocab, self.hidden, constant=self.constant, suppression=SUPPRESSION)
        if name not in self.small.shape.tensors:
            return empty(self.shape.tensors[name])
        weight = self.small.read(name)
        match name.split(".")[-2]:
            case "input_layernorm" | "post_attention_layernorm":
                return place(weight, self.hidden, scale=self.norm_scale)
            case "q_proj":
                scale = sqrt(self.shape.head_dim / self.small.shape.head_dim)
                return place(weight, self.queries, self.hidden, scale=scale)
            case "k_proj" | "v_proj":
                return place(weight, self.keys, self.hidden)
            case "o_proj":
                return place(weight, self.hidden, self.queries)
            case "gate_proj" | "up_proj":
                return place(weight, self.inner, self.hidden)
            case "down_proj":
                return place(weight, self.hidden, self.inner)
        raise AssertionError(name)

    def _embedding(self) -> Piece:
        weight = self.small.read("model.embed_tokens.weight")
        if self.constant is None:
            return place(weight, self.vocab, self.hidden)
        # Rows of tokens that the small model lacks stay zero: these tokens are never emitted.
        kappa = torch.full((len(weight), 1), self.kappa)
        return place(torch.cat((weight, kappa), 1), self.vocab, Axis.first(self.constant + 1, self.shape.hidden_size))

    def _final_norm(self) -> Piece:
        weight = self.small.read("model.norm.weight") * self.norm_scale
        if self.constant is None:
            return place(weight, self.hidden)
        at_constant = torch.tensor([self.norm_scale / self.kappa])
        return place(torch.cat((weight, at_constant)), Axis.first(self.constant + 1, self.shape.hidden_size))


def rotary_layout(small: int, large: int, theta: float) -> tuple[Tensor, float]:
    """Indices in a large head of a small head's rotated pairs [small/2], and the base of the large frequencies."""
    pairs = torch.arange(small // 2)
    if large % small == 0:
        return pairs * (large // small), theta
    return pairs, theta ** (large / small)


def head_axes(small: LlamaShape, large: LlamaShape, pairs: Tensor) -> tuple[Axis, Axis]:
    """Axes of all query heads and of all key-value heads; `pairs` as `rotary_layout` gives them.

    Query heads that share a key-value head are divided into groups of the large shape's size; each group has its copy
    of the key-value head.
    """
    dims = torch.cat((pairs, pairs + large.head_dim // 2))  # a pair's halves are half a head apart
    queries: list[tuple[int, int]] = []
    keys: list[tuple[int, int]] = []
    shared, group = _group(small), _group(large)
    for key in range(small.num_key_value_heads):
        for start in range(0, shared, group):
            slot = len(keys)
            keys.append((slot, key))
            members = range(start, min(start + group, shared))
            queries += [(slot * group + member - start, key * shared + member) for member in members]
    return (
        _axis_of_heads(queries, dims, small.head_dim, large.num_attention_heads * large.head_dim, large.head_dim),
        _axis_of_heads(keys, dims, small.head_dim, large.num_key_value_heads * large.head_dim, large.head_dim),
    )


def _axis_of_heads(heads: list[tuple[int, int]], dims: Tensor, small: int, size: int, large: int) -> Axis:
    places = torch.cat([place * large + dims for place, _ in heads])
    sources = torch.cat([source * small + torch.arange(small) for _, source in heads])
    return Axis(size, places, sources)


def _group(shape: LlamaShape) -> int:
    """Query heads per key-value head."""
    return shape.num_attention_heads // shape.num_key_value_heads


def _check(small: LlamaShape, large: LlamaShape) -> None:
    for name, own in as_dict(small).items():
        given = getattr(large, name)
        if name not in ("tie_word_embeddings", "num_key_value_heads") and given < own:
            raise ShapeError(f"The shape has {name} {given}, less than the model's {own}: give a larger shape.")
    copies = -(-_group(small) // _group(large))
    if (needed := small.num_key_value_heads * copies) > large.num_key_value_heads:
        raise ShapeError(
            f"The shape has {large.num_key_value_heads} key-value heads, each shared by {_group(large)} query heads, "
            f"but the model's {small.num_key_value_heads}, each shared by {_group(small)}, need {needed}: give a shape "
            "with more key-value heads."
        )
    padded = large.vocab_size > small.vocab_size
    if padded and large.hidden_size == small.hidden_size:
        raise ShapeError(
            f"The shape has {large.vocab_size - small.vocab_size} tokens that the model lacks, and no hidden "
            "dimension to keep their logits down with: give a shape with a larger hidden_size, or the same vocabulary."
        )
    if large.tie_word_embeddings and not small.tie_word_embeddings:
        raise ShapeError(
            "The shape ties input and output embeddings, but the model has one of each: give a shape with "
            "tie_word_embeddings false."
        )
    if large.tie_word_embeddings and padded:
        raise ShapeError(
            f"The shape ties input and output embeddings and has {large.vocab_size - small.vocab_size} tokens that the "
            "model lacks, whose logits only an output layer of its own can keep down: give a shape with "
            "tie_word_embeddings false, or the same vocabulary."
        )
