# SPDX-License-Identifier: Apache-2.0
"""A small drafter for the inflated target, tensor by tensor."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.models.inflate.placement import Axis, Piece, empty, place, place_output
from benchmarks.models.inflate.target import SUPPRESSION, InflatedTarget
from redrafter_vllm.checkpoint.config import DrafterConfig, tensor_shapes
from redrafter_vllm.checkpoint.io import check_against_target, load_checkpoint
from redrafter_vllm.checkpoint.names import MODEL_TYPE
from redrafter_vllm.checkpoint.vocab_mapping import MAP, to_offsets, to_target_ids
from redrafter_vllm.predict.shapes import ShapeError, TensorShapes, as_dict


def inflated_config(
    small: DrafterConfig,
    target: InflatedTarget,
    *,
    exit_dim: int | None = None,
    num_draft_layers: int | None = None,
    draft_vocab_size: int | None = None,
) -> DrafterConfig:
    """The large drafter's sizes; those that are None grow in proportion to the target's."""
    hidden, vocab = target.shape.hidden_size, target.shape.vocab_size
    trimmed = small.draft_vocab_size
    return DrafterConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        exit_dim=exit_dim or small.exit_dim * hidden // small.hidden_size,
        num_draft_layers=num_draft_layers or small.num_draft_layers,
        rnn=small.rnn,
        draft_vocab_size=draft_vocab_size or (None if trimmed is None else trimmed * vocab // small.vocab_size),
    )


class InflatedDrafter:
    """Contents of all tensors of the large drafter.

    Raises ShapeError if the small drafter does not fit, and a `CheckpointError` for a drafter that cannot be read or
    belongs to another target.
    """

    def __init__(self, folder: Path, target: InflatedTarget, **sizes: int | None) -> None:
        self.small, self._tensors = load_checkpoint(folder, dtype=torch.float32)
        own = target.small.shape
        check_against_target(self.small, hidden_size=own.hidden_size, vocab_size=own.vocab_size)
        self.config = inflated_config(self.small, target, **sizes)
        _check(self.small, self.config)
        hidden = self.small.hidden_size
        self.hidden = Axis.first(hidden, self.config.hidden_size)
        both = torch.cat((torch.arange(hidden), self.config.hidden_size + torch.arange(hidden)))
        self.both = Axis.at(2 * self.config.hidden_size, both)  # context, then state
        self._context_constant = target.constant
        if self.config.has_input_proj:
            has_free_dim = self.small.exit_dim < self.config.exit_dim
            self.exit = Axis.first(self.small.exit_dim, self.config.exit_dim)
            self.exit_constant = self.small.exit_dim if target.constant is not None and has_free_dim else None
        else:
            self.exit, self.exit_constant = self.both, target.constant
        small_ids = _proposed_ids(self.small, self._tensors)
        self.draft_ids = _draft_ids(small_ids, self.config)
        rows = small_ids if self.draft_ids is None else torch.searchsorted(self.draft_ids, small_ids)
        self.vocab = Axis.at(self.config.output_size, rows)
        if len(self.vocab.places) < self.vocab.size and self.exit_constant is None:
            raise ShapeError(
                "The drafter has tokens to suppress, but no free dimension for that: give a larger hidden_size or "
                "exit_dim, in a shape that does not tie its embeddings."
            )

    @property
    def tensors(self) -> TensorShapes:
        own = tensor_shapes(self.config)
        return own if self.draft_ids is None else own | {MAP: (len(self.draft_ids),)}

    def described(self, dtype: str) -> dict[str, Any]:
        """The large drafter's `config.json`."""
        return {"architectures": ["Drafter"], "model_type": MODEL_TYPE, "dtype": dtype} | as_dict(self.config)

    def piece(self, name: str) -> Piece:
        """Contents of one of `tensors`. The map of draft ids is int64."""
        if name == MAP:
            assert self.draft_ids is not None
            offsets = to_offsets(self.draft_ids)
            return Piece(tuple(offsets.shape), torch.arange(len(offsets)), None, offsets)
        if name == f"lm_head.{self.config.num_draft_layers}.weight":
            head = self._tensors[f"lm_head.{self.small.num_draft_layers}.weight"]
            return place_output(head, self.vocab, self.exit, constant=self.exit_constant, suppression=SUPPRESSION)
        part, kind = name.rsplit(".", 1)
        if part == "input_proj":
            return self._input_proj(kind)
        layer = part.split(".")
        if layer[0] == "lm_head" and int(layer[1]) >= self.small.num_draft_layers:
            return empty(self.tensors[name])
        axis = self.exit if layer[0] == "lm_head" else self.hidden
        return place(self._tensors[name], axis, axis if kind == "weight" else None)

    def _input_proj(self, kind: str) -> Piece:
        """The small drafter's projection, or an identity if it has none; and a row that passes on the constant."""
        if not self.small.has_input_proj:
            weight, bias = torch.eye(2 * self.small.hidden_size), torch.zeros(2 * self.small.hidden_size)
        else:
            weight, bias = self._tensors["input_proj.weight"], self._tensors["input_proj.bias"]
        if kind == "bias":
            return place(bias, self.exit)
        if self.exit_constant is None or self._context_constant is None:
            return place(weight, self.exit, self.both)
        rows = Axis.first(len(weight) + 1, self.config.exit_dim)
        columns = Axis.at(self.both.size, torch.cat((self.both.places, torch.tensor([self._context_constant]))))
        return place(torch.block_diag(weight, torch.ones(1, 1)), rows, columns)


def _proposed_ids(small: DrafterConfig, tensors: dict[str, Tensor]) -> Tensor:
    """The target ids of the small drafter's output rows, ascending."""
    return torch.arange(small.vocab_size) if small.draft_vocab_size is None else to_target_ids(tensors[MAP])


def _draft_ids(small_ids: Tensor, config: DrafterConfig) -> Tensor | None:
    """The large drafter's vocabulary, ascending: that of the small one, and the highest other ids."""
    if config.draft_vocab_size is None:
        return None
    others = torch.ones(config.vocab_size, dtype=torch.bool)
    others[small_ids] = False
    added = others.nonzero().flatten().flip(0)[: config.draft_vocab_size - len(small_ids)]
    return torch.cat((small_ids, added)).sort().values


def _check(small: DrafterConfig, large: DrafterConfig) -> None:
    for name, own, given in (
        ("exit_dim", small.exit_dim, large.exit_dim),
        ("number of ResBlocks", small.num_draft_layers, large.num_draft_layers),
        ("draft vocabulary", small.draft_vocab_size or 0, large.output_size),
        ("draft vocabulary", 0 if small.draft_vocab_size else small.vocab_size, large.output_size),
    ):
        if given < own:
            raise ShapeError(f"The drafter's {name} would be {given}, less than its present {own}: give a larger one.")
    if small.has_input_proj and not large.has_input_proj:
        raise ShapeError(
            f"The drafter projects its input, but with exit_dim {large.exit_dim} (twice the hidden size) there is no "
            "layer for that: give another exit_dim."
        )
