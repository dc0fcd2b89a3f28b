# SPDX-License-Identifier: Apache-2.0
"""The distillation loss: the drafter's unrolled predictions against the target's own distributions."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import embedding as lookup

from redrafter_vllm.drafter import Drafter
from training.frozen_target import Signals


@dataclass(frozen=True)
class DepthSums:
    """Sums over positions, by depth 1..T; divide by `count` for means."""

    kl: Tensor  # [T] nats, carries the gradient
    agreements: Tensor  # [T] positions at which drafter and target prefer the same token
    count: Tensor  # [T] positions


def num_positions(length: int, beam_length: int) -> int:
    """How many context positions of a window of `length` tokens have all their `beam_length` targets inside it."""
    return max(length - beam_length, 0)


def unrolled_loss(
    drafter: Drafter,
    embedding: Tensor,  # [V, H]
    signals: Signals,
    tokens: Tensor,  # [B, L]
    valid: Tensor,  # [B, L]
    beam_length: int,
    first: int,
    last: int,
    temperature: float = 1.0,
) -> DepthSums:
    """KL(target || drafter) of arXiv 2403.09919's distillation, at context positions first <= p < last.

    At position p the context is the target's hidden state h_p and the root is token x_{p+1}. For t = 1..T the drafter
    is fed x_{p+1}..x_{p+t} and is compared with the target's distribution of x_{p+t+1}, the target's logits at p+t. A
    term counts when x_{p+t} is valid.

    `temperature` divides the target's logits, not the drafter's. Below 1 the drafter learns how likely a token is to be
    the target's favourite rather than a sample of it: what greedy decoding emits, and what beams should be ranked by.

    Raises:
        ValueError: the range leaves the window's `num_positions`.
    """
    if not 0 <= first < last <= num_positions(tokens.shape[1], beam_length):
        raise ValueError(f"positions [{first}, {last}) do not fit {tokens.shape[1]} tokens and length {beam_length}")
    context_BPH = signals.hidden[:, first:last].to(embedding.dtype)
    share_BPS = drafter.context_share(context_BPH)
    state_BPH = drafter.initial_state(context_BPH)
    # One log-softmax serves all depths: depth t of position p and depth t-1 of position p+1 look at the same row.
    log_p_BQV = (signals.logits[:, first + 1 : last + beam_length].float() / temperature).log_softmax(-1)
    p_BQV = log_p_BQV.exp()
    negentropy_BQ = (p_BQV * log_p_BQV).sum(-1)
    best_BQ = log_p_BQV.argmax(-1)

    kl, agreements, count = [], [], []
    for t in range(1, beam_length + 1):
        fed = slice(first + t, last + t)
        seen = slice(t - 1, t - 1 + last - first)
        state_BPH = drafter.next_state(state_BPH, lookup(tokens[:, fed], embedding))
        log_q_BPV = drafter.logits(share_BPS, state_BPH).float().log_softmax(-1)
        kl_BP = negentropy_BQ[:, seen] - (p_BQV[:, seen] * log_q_BPV).sum(-1)
        kl.append((kl_BP * valid[:, fed]).sum())
        agreements.append(((log_q_BPV.argmax(-1) == best_BQ[:, seen]) & valid[:, fed]).sum())
        count.append(valid[:, fed].sum())
    return DepthSums(torch.stack(kl), torch.stack(agreements), torch.stack(count))
