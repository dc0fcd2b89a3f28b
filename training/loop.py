# SPDX-License-Identifier: Apache-2.0
"""The drafter's training loop. It knows nothing of processes, machines or files."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from redrafter_vllm.drafter import Drafter, DrafterConfig
from training.config import DistillConfig
from training.data import Windows
from training.frozen_target import FrozenTarget
from training.losses import num_positions, unrolled_loss
from training.optimizer import SplitOptimizer
from training.schedule import learning_rate_scale, steps


@dataclass(frozen=True)
class StepFigures:
    """Means over one batch."""

    loss: float  # weighted over depths, nats
    loss_by_depth: tuple[float, ...]
    agreement: tuple[float, ...]  # by depth, fraction of positions with the target's favourite on top; where the draft
    # vocabulary lacks that favourite, the two disagree


def build_drafter(target: FrozenTarget, config: DistillConfig, draft_tokens: Tensor | None = None) -> Drafter:
    """A seeded drafter of the target's sizes, in float32 on the target's device.

    `draft_tokens` [D], ascending target ids, are what it is to propose where `config` has a `draft_vocab_size`.

    Without an input projection the RNN state reaches the output layer at its own width: that half of the layer starts
    as the target's LM head and the context's half at zero, which saves much of a short training (docs/log.md).
    """
    torch.manual_seed(config.seed)
    drafter = Drafter(
        DrafterConfig(
            vocab_size=target.vocab_size,
            hidden_size=target.hidden_size,
            exit_dim=config.exit_dim or 2 * target.hidden_size,
            num_draft_layers=config.num_draft_layers,
            rnn=config.rnn,
            draft_vocab_size=config.draft_vocab_size,
        )
    ).to(target.device)
    if draft_tokens is not None:
        drafter.set_draft_tokens(draft_tokens)
    if not drafter.config.has_input_proj:
        kept = drafter.draft_tokens
        with torch.no_grad():
            drafter.output.weight.zero_()
            drafter.output.weight[:, target.hidden_size :] = (
                target.head_weight if kept is None else target.head_weight[kept]
            )
    return drafter


def accumulate_gradients(
    drafter: Drafter, embedding: Tensor, target: FrozenTarget, batch: Windows, config: DistillConfig
) -> StepFigures:
    """Adds the batch's gradient, chunk by chunk, so that only one chunk's logits are in memory at a time."""
    with torch.autocast(batch.tokens.device.type, torch.bfloat16):
        signals = target.signals(batch.tokens)
    weights = torch.tensor(config.depth_weights, device=batch.tokens.device)
    positions = num_positions(batch.tokens.shape[1], config.beam_length)
    counts = torch.stack([batch.valid[:, t : t + positions].sum() for t in range(1, config.beam_length + 1)]).clamp(
        min=1
    )
    loss, agreements = torch.zeros_like(weights), torch.zeros_like(weights)
    for first in range(0, positions, config.chunk):
        last = min(first + config.chunk, positions)
        with torch.autocast(batch.tokens.device.type, torch.bfloat16):
            sums = unrolled_loss(
                drafter,
                embedding,
                signals,
                batch.tokens,
                batch.valid,
                config.beam_length,
                first,
                last,
                depth_scale=weights / counts,
                config=config.loss,
            )
        sums.total.backward()
        loss += sums.loss
        agreements += sums.agreements
    loss_T = loss / counts
    return StepFigures(float((loss_T * weights).sum()), tuple(loss_T.tolist()), tuple((agreements / counts).tolist()))


def inner_matrices(drafter: Drafter) -> list[nn.Parameter]:
    """The matrices that Muon may train: all but the output layer."""
    return [p for p in drafter.parameters() if p.dim() == 2 and p is not drafter.output.weight]


def distill(
    drafter: Drafter, target: FrozenTarget, batches: Iterator[Windows], config: DistillConfig, *, quiet: bool = False
) -> list[StepFigures]:
    """Trains `drafter` in place until the budget is used; returns the figures of every step made.

    Raises:
        FloatingPointError: a loss or gradient is not finite; names the step. The drafter keeps its last good weights.
    """
    optimizer = SplitOptimizer(
        drafter,
        inner_matrices(drafter),
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
    )
    embedding = target.embedding.float()
    history: list[StepFigures] = []
    drafter.train()
    for tick in steps(config.budget, "drafter", quiet=quiet):
        figures = accumulate_gradients(drafter, embedding, target, next(batches).to(target.device), config)
        norm = float(nn.utils.clip_grad_norm_(drafter.parameters(), config.max_grad_norm))
        if not (math.isfinite(figures.loss) and math.isfinite(norm)):
            raise FloatingPointError(
                f"step {tick.step}: the loss is {figures.loss} and the gradient's norm {norm}; "
                "lower the learning rate or check the target's weights"
            )
        optimizer.step(learning_rate_scale(tick.used, config.warmup))
        history.append(figures)
        tick.bar.set_postfix(loss=f"{figures.loss:.3f}", first=f"{figures.agreement[0]:.2f}", refresh=False)
    drafter.eval()
    return history
