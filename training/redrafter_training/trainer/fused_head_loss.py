# SPDX-License-Identifier: Apache-2.0
"""Output layer and loss fused: value and gradient at all depths, with the logits of only one depth in memory.

The plain form, `head_loss_reference`, keeps logits and their gradients [T, B, P, V] for the backward pass. Here each
depth's logits are replaced by their gradient, and that is reduced to gradients of the layer's input and weight, before
the next depth's are computed. Positions that do not count, those of prompts for instance, have no logits. Splitting
over the vocabulary too would save nothing: a caller with too many positions for [B, P, V] passes them in parts, which
only makes the products smaller.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import cross_entropy, kl_div, linear

from redrafter_training.config.recipe import LossConfig


@dataclass(frozen=True)
class Truth:
    """What the drafter is compared with; depth t = 1..T at position p uses row p + t − 1, so Q = P + T − 1."""

    logits: Tensor  # [B, Q, V], of the target; over the draft vocabulary [B, Q, D] if there is one
    top1_ids: Tensor  # [B, Q], the target's top-1 token of the whole vocabulary
    loss_mask: Tensor  # [B, Q] bool, rows that count
    next_tokens: Tensor  # [B, Q], the text's next token at each row, −1 where there is none
    inside: Tensor | None = None  # [T, B, P] bool, whether row p + t − 1 is in the document of p; None: always

    def terms(self, t: int, positions: int) -> Tensor:
        """The positions that count at depth t + 1. [B, P] bool"""
        return _terms_that_count(self.loss_mask, self.inside, t, positions)


def _terms_that_count(loss_mask: Tensor, inside: Tensor | None, t: int, positions: int) -> Tensor:
    seen = loss_mask[:, t : t + positions]
    return seen if inside is None else seen & inside[t]


@dataclass(frozen=True)
class HeadLoss:
    """`total` is the sum over depths of depth_scale · loss."""

    total: Tensor  # [], carries the gradient
    loss: Tensor  # [T], sums over the rows that count
    agreements: Tensor  # [T], rows where the drafter's top-1 token is the target's, of its whole vocabulary


def head_loss(
    features: Tensor,  # [T, B, P, E]
    weight: Tensor,  # [V, E], or [D, E] with a draft vocabulary
    truth: Truth,
    depth_scale: Tensor,  # [T]
    config: LossConfig,
    draft_tokens: Tensor | None = None,  # [D]
) -> HeadLoss:
    """The loss of the logits `features @ weight.T`, in fp32; the products are in autocast's type where it is on."""
    device = features.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else features.dtype
    with torch.autocast(device, enabled=False):
        total, loss, agreements = _HeadLoss.apply(
            features, weight, _Rows.of(truth, config, draft_tokens), depth_scale, config, dtype
        )
    return HeadLoss(total, loss, agreements)


def head_loss_reference(
    features: Tensor,  # [T, B, P, E]
    weight: Tensor,  # [V, E], or [D, E] with a draft vocabulary
    truth: Truth,
    depth_scale: Tensor,  # [T]
    config: LossConfig,
    draft_tokens: Tensor | None = None,  # [D]
) -> HeadLoss:
    """`head_loss` as it is defined, with autograd and all logits of all depths at once."""
    logits = linear(features, weight).float()
    positions = logits.shape[2]
    labels = _draft_ids(truth.top1_ids if config.labels == "target" else truth.next_tokens, draft_tokens)
    if config.label_share < 1:
        log_p = (truth.logits.float() / config.temperature).log_softmax(-1)
        log_q = (logits / config.temperature).log_softmax(-1)
    loss, agreements = [], []
    for t, logits_BPD in enumerate(logits):
        seen = slice(t, t + positions)
        terms = torch.zeros((), device=logits.device)
        if config.label_share < 1:
            divergence = kl_div(log_q[t], log_p[:, seen], reduction="none", log_target=True).sum(-1)
            terms = terms + (1 - config.label_share) * config.temperature**2 * divergence
        if config.label_share > 0:
            ce = cross_entropy(logits_BPD.transpose(1, 2), labels[:, seen], ignore_index=-1, reduction="none")
            terms = terms + config.label_share * ce
        counted = truth.terms(t, positions)
        loss.append((terms * counted).sum())
        best = logits_BPD.argmax(-1) if draft_tokens is None else draft_tokens[logits_BPD.argmax(-1)]
        agreements.append(((best == truth.top1_ids[:, seen]) & counted).sum())
    loss_T = torch.stack(loss)
    return HeadLoss((loss_T * depth_scale).sum(), loss_T.detach(), torch.stack(agreements))


@dataclass(frozen=True)
class _Rows:
    """The truth, computed once for all rows; every depth takes those that count, as depths share rows."""

    loss_mask: Tensor  # [B, Q] bool
    inside: Tensor | None  # [T, B, P] bool
    top1_ids: Tensor  # [B, Q] target ids
    labels: Tensor | None  # [B, Q] draft ids, −1 for none; None when labels have no share
    p: Tensor | None  # [B, Q, D] fp32; None when the divergence has no share
    negentropy: Tensor  # [B, Q] of p
    draft_tokens: Tensor | None

    @classmethod
    def of(cls, truth: Truth, config: LossConfig, draft_tokens: Tensor | None) -> "_Rows":
        labels, p, negentropy = None, None, torch.empty(0)
        if config.label_share > 0:
            labels = _draft_ids(truth.top1_ids if config.labels == "target" else truth.next_tokens, draft_tokens)
        if config.label_share < 1:
            logits = truth.logits if config.temperature == 1 else truth.logits.float() / config.temperature
            log_p = logits.log_softmax(-1, dtype=torch.float32)
            p = log_p.exp()
            # For a token with logit −inf, 0 · −inf must be 0.
            negentropy = log_p.clamp_(min=torch.finfo(torch.float32).min).mul_(p).sum(-1)
        return cls(truth.loss_mask, truth.inside, truth.top1_ids, labels, p, negentropy, draft_tokens)

    def at(self, row: Tensor, place: Tensor) -> "_RowsAt":
        """What is at `place` [R] of `row` [R]."""
        labels = None if self.labels is None else self.labels[row, place]
        if self.p is None:
            return _RowsAt(self.top1_ids[row, place], labels, None, self.negentropy)
        p = self.p.flatten(0, 1).index_select(0, row * self.p.shape[1] + place)
        return _RowsAt(self.top1_ids[row, place], labels, p, self.negentropy[row, place])


@dataclass(frozen=True)
class _RowsAt:
    """`_Rows` at R places."""

    top1_ids: Tensor  # [R]
    labels: Tensor | None  # [R]
    p: Tensor | None  # [R, D]
    negentropy: Tensor  # [R]


class _HeadLoss(torch.autograd.Function):
    """Computes the gradient in the forward pass, where the logits are available, and scales it in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, weight: Tensor, rows: _Rows, scale: Tensor, config: LossConfig, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor]:
        depths, _, positions, width = features.shape
        needs_gradient = any(ctx.needs_input_grad)
        grad_features = torch.zeros_like(features, memory_format=torch.contiguous_format) if needs_gradient else None
        grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        weight_DE = weight.to(dtype)
        loss, agreements = [], []
        for t in range(depths):
            counted_BP = _terms_that_count(rows.loss_mask, rows.inside, t, positions)
            counted_R = counted_BP.flatten().nonzero().squeeze(-1)
            truth = rows.at(counted_R // positions, counted_R % positions + t)
            x_RE = features[t].reshape(-1, width).index_select(0, counted_R).to(dtype)
            logits_RD = (x_RE @ weight_DE.T).float()
            best_R = logits_RD.argmax(-1)
            if rows.draft_tokens is not None:
                best_R = rows.draft_tokens[best_R]
            agreements.append((best_R == truth.top1_ids).sum())
            terms_R, grad_RD = _terms(logits_RD, truth, config)
            del logits_RD
            loss.append(terms_R.sum())
            if grad_features is not None:
                grad_RD = grad_RD.mul_(scale[t]).to(dtype)
                grad_features[t].view(-1, width).index_copy_(0, counted_R, (grad_RD @ weight_DE).to(features.dtype))
                if grad_weight is not None and grad_weight.dtype == dtype:
                    grad_weight.addmm_(grad_RD.T, x_RE)
                elif grad_weight is not None:
                    grad_weight += grad_RD.T @ x_RE
            del grad_RD
        ctx.save_for_backward(grad_features, grad_weight)
        loss_T, agreements_T = torch.stack(loss), torch.stack(agreements)
        ctx.mark_non_differentiable(loss_T, agreements_T)
        return (loss_T * scale).sum(), loss_T, agreements_T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        grad_features, grad_weight = ctx.saved_tensors
        # In place: a second copy of the weight's gradient would be the largest tensor. A second backward pass raises.
        if grad_weight is not None:
            grad_weight.mul_(grad_total)
        return grad_features.mul_(grad_total), grad_weight, None, None, None, None


def _terms(logits: Tensor, truth: _RowsAt, config: LossConfig) -> tuple[Tensor, Tensor]:
    """One depth's loss [R] and its gradient by `logits` [R, D], which are overwritten."""
    if truth.labels is None:
        return _divergence(logits, truth, config.temperature)
    ce, ce_grad = _label_term(logits, truth.labels)
    if truth.p is None:
        return ce, ce_grad
    kl, kl_grad = _divergence(logits, truth, config.temperature)
    return kl.lerp(ce, config.label_share), kl_grad.lerp_(ce_grad, config.label_share)


def _divergence(logits: Tensor, truth: _RowsAt, temperature: float) -> tuple[Tensor, Tensor]:
    p = truth.p
    assert p is not None
    log_q = (logits if temperature == 1 else logits.div_(temperature)).log_softmax(-1)
    kl = truth.negentropy - torch.mul(p, log_q, out=logits).sum(-1)
    gradient = log_q.exp_().sub_(p)
    return (kl, gradient) if temperature == 1 else (kl * temperature**2, gradient.mul_(temperature))


def _label_term(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    log_q = logits.log_softmax(-1)
    is_label = (labels >= 0).unsqueeze(-1)
    label = labels.clamp(min=0).unsqueeze(-1)
    ce = torch.where(is_label, -log_q.gather(-1, label), 0.0).squeeze(-1)
    gradient = log_q.exp_().scatter_add_(-1, label, -torch.ones_like(label, dtype=log_q.dtype))
    return ce, gradient.mul_(is_label)


def _draft_ids(target_ids: Tensor, draft_tokens: Tensor | None) -> Tensor:
    """Draft ids of `target_ids`, −1 for those outside the draft vocabulary."""
    if draft_tokens is None:
        return target_ids
    place = torch.searchsorted(draft_tokens, target_ids.contiguous()).clamp(max=len(draft_tokens) - 1)
    return torch.where(draft_tokens[place] == target_ids, place, -1)
