# SPDX-License-Identifier: Apache-2.0
"""Rows that hold several documents one after the other: positions, loss terms, labels and attention by document.

`doc_ids` [B, L] is each token's document within its row, -1 for padding, which is at the end. If it is None, a row is
one text followed by padding.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

# Maps positions [B, L] that start at 0 in every document, and the dtype of the attention scores, to arguments of the
# target's forward pass.
Borders = Callable[[Tensor, torch.dtype], dict[str, Tensor]]


def positions_in(doc_ids: Tensor) -> Tensor:
    """Each token's position in its document, from 0. [B, L]

    Padding continues the last document's positions, so that a row of one document has no border.
    """
    place = torch.arange(doc_ids.shape[1], device=doc_ids.device).expand_as(doc_ids)
    before = pad(doc_ids[:, :-1], (1, 0), value=-1)
    begins = (doc_ids != before) & (doc_ids >= 0)
    return place - torch.where(begins, place, 0).cummax(1).values


def inside(doc_ids: Tensor, depth: int, first: int, last: int) -> Tensor:
    """Whether tokens p and p + depth belong to one document, for first <= p < last. [B, last - first]"""
    return doc_ids[:, first:last] == doc_ids[:, first + depth : last + depth]


def terms(loss_mask: Tensor, doc_ids: Tensor | None, depth: int, first: int, last: int) -> Tensor:
    """Which context positions first <= p < last count at a depth. [B, last - first] bool

    At position p and depth t >= 1 the drafter's inputs are the target's hidden state at p and x_{p+1}..x_{p+t}, and its
    prediction after x_{p+t} is compared: the loss mask must hold at p + t, and p + t be in the document of p.

    Raises:
        ValueError: the positions are outside the row.
    """
    if depth < 1 or not 0 <= first <= last <= loss_mask.shape[1] - depth:
        raise ValueError(f"positions [{first}, {last}) at depth {depth} do not fit {loss_mask.shape[1]} tokens")
    fed = loss_mask[:, first + depth : last + depth]
    return fed if doc_ids is None else fed & inside(doc_ids, depth, first, last)


def next_tokens(tokens: Tensor, loss_mask: Tensor, doc_ids: Tensor | None) -> Tensor:
    """The next token of each token in its text, -1 where there is none. [B, L]"""
    if doc_ids is None:
        return pad(torch.where(loss_mask, tokens, -1)[:, 1:], (0, 1), value=-1)
    followed = (doc_ids[:, 1:] == doc_ids[:, :-1]) & (doc_ids[:, 1:] >= 0)
    return pad(torch.where(followed, tokens[:, 1:], -1), (0, 1), value=-1)


def by_positions(positions: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    """Positions alone, from which transformers makes the mask if none is given."""
    return {"position_ids": positions}


def by_mask(positions: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    """Positions, and a mask that is added to the attention scores instead of the one that the target would make."""
    return {"position_ids": positions, "attention_mask": document_mask(positions, dtype)}


def document_mask(positions: Tensor, dtype: torch.dtype) -> Tensor:
    """0 for earlier tokens of the same document, the lowest number elsewhere. [B, 1, L, L]"""
    doc_ids = (positions == 0).cumsum(1)
    allowed = (doc_ids[:, :, None] == doc_ids[:, None, :]).tril()
    mask = torch.zeros(allowed.shape, dtype=dtype, device=positions.device)
    return mask.masked_fill(~allowed, torch.finfo(dtype).min)[:, None]
