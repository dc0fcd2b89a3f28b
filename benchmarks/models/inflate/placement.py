# SPDX-License-Identifier: Apache-2.0
"""Positions of the small model's numbers in a larger tensor that is zero elsewhere."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Axis:
    """One dimension of a tensor: index `sources[i]` of the small tensor is index `places[i]` of the large one.

    A source may have several places; a place has one source.
    """

    size: int
    places: Tensor  # [n] int64
    sources: Tensor  # [n] int64

    def __post_init__(self) -> None:
        if self.places.shape != self.sources.shape or self.places.dim() != 1:
            raise ValueError("places and sources must be of one length")
        if len(self.places) and not 0 <= int(self.places.min()) <= int(self.places.max()) < self.size:
            raise ValueError(f"a place is outside {self.size}")
        if len(self.places.unique()) != len(self.places):
            raise ValueError("a place has two sources")

    @classmethod
    def at(cls, size: int, places: Tensor) -> "Axis":
        """Small indices 0, 1, … at `places` [n]."""
        return cls(size, places, torch.arange(len(places)))

    @classmethod
    def first(cls, small: int, size: int) -> "Axis":
        """The first `small` places."""
        return cls.at(size, torch.arange(small))


@dataclass(frozen=True)
class Piece:
    """A tensor of `shape` with `values` at the given `rows` and `columns`, and zeros elsewhere.

    `rows` ascend. A vector has no columns.
    """

    shape: tuple[int, ...]
    rows: Tensor  # [n] int64
    columns: Tensor | None  # [m] int64
    values: Tensor  # [n, m] or [n]

    def dense_rows(self, start: int, stop: int) -> Tensor:
        """Rows `rows[start:stop]` in full, [stop - start, ...]."""
        part = self.values[start:stop]
        if self.columns is None:
            return part
        dense = part.new_zeros(len(part), self.shape[1])
        dense[:, self.columns] = part
        return dense


def empty(shape: tuple[int, ...]) -> Piece:
    """All zero."""
    none = torch.empty(0, dtype=torch.int64)
    columns = None if len(shape) == 1 else none
    return Piece(shape, none, columns, torch.empty((0,) * len(shape)))


def place(weight: Tensor, rows: Axis, columns: Axis | None = None, *, scale: float = 1.0) -> Piece:
    """`scale` times `weight` [r, c], or [r] without columns, placed by the axes."""
    order = rows.places.argsort()
    values = weight[rows.sources[order]]
    shape: tuple[int, ...] = (rows.size,)
    if columns is not None:
        values = values[:, columns.sources]
        shape = (rows.size, columns.size)
    if scale != 1.0:
        values = values * scale
    return Piece(shape, rows.places[order], None if columns is None else columns.places, values)


def place_output(weight: Tensor, rows: Axis, columns: Axis, *, constant: int | None, suppression: float) -> Piece:
    """An output layer: as `place`, and rows without source are row 0 of `weight`, with -`suppression` at `constant`.

    Raises ValueError if there are such rows but no constant.
    """
    if len(rows.places) == rows.size:
        return place(weight, rows, columns)
    if constant is None:
        raise ValueError("rows have to be suppressed, but there is no constant")
    sources = torch.zeros(rows.size, dtype=torch.int64)
    sources[rows.places] = rows.sources
    suppressed = torch.ones(rows.size, dtype=torch.bool)
    suppressed[rows.places] = False
    values = weight[sources][:, columns.sources]
    at_constant = torch.where(suppressed, -suppression, 0.0).to(values.dtype)
    return Piece(
        (rows.size, columns.size),
        torch.arange(rows.size),
        torch.cat((columns.places, torch.tensor([constant]))),
        torch.cat((values, at_constant[:, None]), 1),
    )
