# SPDX-License-Identifier: Apache-2.0
"""The training loss: the drafter's unrolled predictions compared with the target's or the text's next tokens."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import embedding as lookup
from torch.nn.functional import smooth_l1_loss

from redrafter_training.config.recipe import LossConfig
from redrafter_training.target import packed_attention
from redrafter_training.target.model import TargetOutputs
from redrafter_training.trainer.fused_head_loss import HeadLoss, Truth, head_loss
from redrafter_vllm.model.drafter import Drafter

DISTILLATION = LossConfig()


@dataclass(frozen=True)
class DepthSums:
    """Sums over positions, by depth 1..T; divide by `count` for means."""

    total: Tensor  # [], the sum over depths of depth_scale · loss; carries the gradient
    loss: Tensor  # [T] nats, and the weighted distance of hidden states
    agreements: Tensor  # [T] positions where drafter and target have the same top-1 token of the whole vocabulary
    count: Tensor  # [T] positions


def num_positions(length: int, beam_length: int) -> int:
    """Number of context positions in a window of `length` tokens with all `beam_length` predictions inside it."""
    return max(length - beam_length, 0)


def unrolled_loss(
    drafter: Drafter,
    embedding: Tensor,  # [V, H]
    outputs: TargetOutputs,
    tokens: Tensor,  # [B, L]
    loss_mask: Tensor,  # [B, L]
    beam_length: int,
    first: int,
    last: int,
    *,
    depth_scale: Tensor | None = None,  # [T]
    config: LossConfig = DISTILLATION,
    doc_ids: Tensor | None = None,  # [B, L]
    next_tokens: Tensor | None = None,  # [B, L]
) -> DepthSums:
    """The loss of arXiv 2403.09919's unrolled RNN at context positions first <= p < last; see `LossConfig`.

    At position p the context is the target's hidden state h_p and the root is token x_{p+1}. For t = 1..T the drafter's
    inputs are x_{p+1}..x_{p+t}, and its prediction is compared with the target's distribution of x_{p+t+1}, from the
    target's logits at p+t, or with that token itself. A term counts if the loss mask holds at p+t; a token outside the
    window or in its padding is no label. In rows of several documents, a term counts only if x_p and x_{p+t} are in the
    same one.

    The RNN's states of all depths are kept for the backward pass, the logits of one depth only.

    Args:
        depth_scale: factor of each depth's sum in `total`, its weight divided by its count; default 1.
        doc_ids: see `redrafter_training.target.packed_attention`.
        next_tokens: the text's token behind each one, -1 where there is none; by default that of the row.

    Raises:
        ValueError: the range is outside the window's `num_positions`.
    """
    if not 0 <= first < last <= num_positions(tokens.shape[1], beam_length):
        raise ValueError(f"positions [{first}, {last}) do not fit {tokens.shape[1]} tokens and length {beam_length}")
    scale = torch.ones(beam_length, device=tokens.device) if depth_scale is None else depth_scale
    features = unrolled_features(drafter, embedding, outputs.hidden, tokens, beam_length, first, last)
    if next_tokens is None:
        next_tokens = packed_attention.next_tokens(tokens, loss_mask, doc_ids)
    truth = truth_of(outputs, next_tokens, loss_mask, beam_length, first, last, doc_ids)
    if config.target_temperature != 1:
        truth = replace(truth, logits=truth.logits / config.target_temperature)
    result: HeadLoss = head_loss(features, drafter.output.weight, truth, scale, config, drafter.draft_tokens)
    terms = torch.stack([truth.terms(t, last - first) for t in range(beam_length)])
    total, loss = result.total, result.loss
    if config.hidden_weight:
        distance = config.hidden_weight * hidden_distance(features, outputs.hidden, terms, first, last)
        total, loss = total + (scale * distance).sum(), loss + distance.detach()
    return DepthSums(total, loss, result.agreements, terms.sum((1, 2)))


def hidden_distance(
    features: Tensor,  # [T, B, P, H]
    hidden: Tensor,  # [B, L, H]
    terms: Tensor,  # [T, B, P] bool
    first: int,
    last: int,
) -> Tensor:
    """Smooth L1 distances of features from the target's hidden states at p + t, sums over the terms by depth. [T]

    Both are divided by the state's root mean square, so that the distance does not depend on the target's scale.
    """
    states = torch.stack([hidden[:, first + t : last + t] for t in range(1, len(features) + 1)]).float()
    size = states.square().mean(-1, keepdim=True).sqrt().clamp(min=torch.finfo(torch.float32).tiny)
    distances = smooth_l1_loss(features.float() / size, states / size, reduction="none").mean(-1)
    return torch.where(terms, distances, 0.0).sum((1, 2))


def unrolled_features(
    drafter: Drafter,
    embedding: Tensor,  # [V, H]
    hidden: Tensor,  # [B, L, H]
    tokens: Tensor,  # [B, L]
    beam_length: int,
    first: int,
    last: int,
) -> Tensor:
    """Inputs of the drafter's output layer at depths 1..T of positions first <= p < last. [T, B, P, E]"""
    context_BPH = hidden[:, first:last].to(embedding.dtype)
    share_BPS = drafter.context_share(context_BPH)
    state_BPH = drafter.initial_state(context_BPH)
    features = []
    for t in range(1, beam_length + 1):
        state_BPH = drafter.next_state(state_BPH, lookup(tokens[:, first + t : last + t], embedding))
        features.append(drafter.features(share_BPS, state_BPH))
    return torch.stack(features)


def truth_of(
    outputs: TargetOutputs,
    next_tokens: Tensor,  # [B, L]
    loss_mask: Tensor,  # [B, L]
    beam_length: int,
    first: int,
    last: int,
    doc_ids: Tensor | None = None,  # [B, L]
) -> Truth:
    """The truth for positions first <= p < last."""
    rows = slice(first + 1, last + beam_length)
    inside = None
    if doc_ids is not None:
        inside = torch.stack([packed_attention.inside(doc_ids, t, first, last) for t in range(1, beam_length + 1)])
    return Truth(outputs.logits[:, rows], outputs.top1_ids[:, rows], loss_mask[:, rows], next_tokens[:, rows], inside)
