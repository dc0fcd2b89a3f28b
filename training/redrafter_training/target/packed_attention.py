# SPDX-License-Identifier: Apache-2.0
"""Rows in which several documents stand one after the other: what of them belongs together.

`document` [B, L] numbers each token's document within its row, -1 for padding, which stands at the end. Without it a
row is one text, whose valid tokens come first.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad


def positions_in(document: Tensor) -> Tensor:
    """Each token's position in its own document, from 0. [B, L]

    Padding goes on counting after the last document, so that a row of one document shows no border at all.
    """
    place = torch.arange(document.shape[1], device=document.device).expand_as(document)
    before = pad(document[:, :-1], (1, 0), value=-1)
    begins = (document != before) & (document >= 0)
    return place - torch.where(begins, place, 0).cummax(1).values


def inside(document: Tensor, depth: int, first: int, last: int) -> Tensor:
    """Whether tokens p and p + depth are of one document, for first <= p < last. [B, last - first]"""
    return document[:, first:last] == document[:, first + depth : last + depth]


def terms(valid: Tensor, document: Tensor | None, depth: int, first: int, last: int) -> Tensor:
    """Which context positions first <= p < last count at a depth. [B, last - first] bool

    At position p and depth t >= 1 the drafter, with the target's hidden state at p, has been fed x_{p+1}..x_{p+t}, and
    what it predicts after x_{p+t} is compared: p + t must be valid, and of the document of p.

    Raises:
        ValueError: the positions leave the row.
    """
    if depth < 1 or not 0 <= first <= last <= valid.shape[1] - depth:
        raise ValueError(f"positions [{first}, {last}) at depth {depth} do not fit {valid.shape[1]} tokens")
    fed = valid[:, first + depth : last + depth]
    return fed if document is None else fed & inside(document, depth, first, last)


def next_tokens(tokens: Tensor, valid: Tensor, document: Tensor | None) -> Tensor:
    """The token that follows each one in its text, -1 where none does. [B, L]"""
    if document is None:
        return pad(torch.where(valid, tokens, -1)[:, 1:], (0, 1), value=-1)
    followed = (document[:, 1:] == document[:, :-1]) & (document[:, 1:] >= 0)
    return pad(torch.where(followed, tokens[:, 1:], -1), (0, 1), value=-1)
