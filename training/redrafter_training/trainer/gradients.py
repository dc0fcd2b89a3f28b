# SPDX-License-Identifier: Apache-2.0
"""The gradient of one step, over parts of a batch and over processes."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from redrafter_training.config.recipe import DistillConfig
from redrafter_training.data.passages import Passages
from redrafter_training.data.windows import Windows
from redrafter_training.distributed.context import TrainContext
from redrafter_training.target.model import Target, TargetOutputs
from redrafter_training.target.precision import mixed_precision
from redrafter_training.trainer.loss import DepthSums, num_positions, unrolled_loss
from redrafter_vllm.model.drafter import Drafter


@dataclass(frozen=True)
class StepFigures:
    """Means over one batch."""

    loss: float  # weighted over depths, nats
    loss_by_depth: tuple[float, ...]
    # By depth, fraction of positions where the drafter's top-1 token is the target's; where the target's is outside the
    # draft vocabulary, the two disagree.
    agreement: tuple[float, ...]

    @classmethod
    def from_row(cls, row: list[float]) -> "StepFigures":
        """From loss, losses by depth and agreements in one list."""
        depths = (len(row) - 1) // 2
        return cls(row[0], tuple(row[1 : 1 + depths]), tuple(row[1 + depths :]))

    def named(self) -> dict[str, float]:
        """`train/loss`, and loss and agreement by depth."""
        named = {"train/loss": self.loss}
        for depth, (loss, agreement) in enumerate(zip(self.loss_by_depth, self.agreement, strict=True), 1):
            named |= {f"train/redrafter{depth}_loss": loss, f"train/redrafter{depth}_top1": agreement}
        return named


class Replica:
    """One process's copy of the drafter, whose gradients are averaged with the other processes' once per batch."""

    def __init__(self, drafter: Drafter, context: TrainContext) -> None:
        self.drafter = drafter
        self._module = context.wrap(_Applied(drafter))

    def __call__(self, compute: Callable[[Drafter], DepthSums], *, last: bool) -> DepthSums:
        """`compute(drafter)`; the backward pass of the `last` call of a batch exchanges the accumulated gradients."""
        if last or not isinstance(self._module, nn.parallel.DistributedDataParallel):
            return self._module(compute)
        with self._module.no_sync():
            return self._module(compute)


class _Applied(nn.Module):
    """The drafter with a `forward`, which data parallelism needs."""

    def __init__(self, drafter: Drafter) -> None:
        super().__init__()
        self.drafter = drafter

    def forward(self, compute: Callable[[Drafter], DepthSums]) -> DepthSums:
        return compute(self.drafter)


def accumulate_gradients(
    replica: Replica,
    embedding: Tensor,
    target: Target,
    batch: Windows,
    config: DistillConfig,
    context: TrainContext,
) -> StepFigures:
    """Adds the batch's gradient part by part: `micro_batch_size` rows at a time, of which `chunk` positions at a time
    have logits in memory.

    Gradient and figures are means over the positions of all processes together, whatever rows and parts they are in.
    """
    weights = torch.tensor(config.depth_weights, device=batch.tokens.device)
    positions = num_positions(batch.tokens.shape[1], config.beam_length)
    own = torch.stack([batch.terms(t, 0, positions).sum() for t in range(1, config.beam_length + 1)])
    counts = context.total(own).clamp(min=1)
    # Data parallelism averages over processes, and the counts are already totals over processes.
    scale = weights / counts * context.world_size
    sums = torch.zeros(2, config.beam_length, device=batch.tokens.device)
    parts = torch.arange(len(batch)).split(_rows_at_once(batch, config, context))
    for number, rows in enumerate(parts, 1):
        part = batch.rows(rows) if len(parts) > 1 else batch
        sums += _part_sums(replica, embedding, target, part, config, scale, last_part=number == len(parts))
    loss_T, agreement_T = context.total(sums) / counts
    return StepFigures(float((loss_T * weights).sum()), tuple(loss_T.tolist()), tuple(agreement_T.tolist()))


def _rows_at_once(batch: Windows, config: DistillConfig, context: TrainContext) -> int:
    """Rows per part; of passages as many as have the positions of whole rows' chunks."""
    if not isinstance(batch, Passages):
        return config.micro_batch_size or len(batch)
    positions = config.rows_at_once(context.world_size) * min(config.chunk, config.window)
    return max(positions // batch.positions_per_row, 1)


def _outputs(target: Target, batch: Windows, draft_tokens: Tensor | None) -> TargetOutputs:
    if isinstance(batch, Passages):
        return target.outputs_from(batch.hidden, batch.top1_ids, draft_tokens)
    return target.outputs(batch.tokens, batch.positions, draft_tokens)


def _part_sums(
    replica: Replica,
    embedding: Tensor,
    target: Target,
    batch: Windows,
    config: DistillConfig,
    scale: Tensor,  # [T]
    *,
    last_part: bool,
) -> Tensor:
    """Adds the gradient of rows that are computed at once; returns sums of losses and agreements by depth. [2, T]"""
    with mixed_precision(batch.tokens.device, config.mixed_precision):
        outputs = _outputs(target, batch, replica.drafter.draft_tokens)
    positions = num_positions(batch.tokens.shape[1], config.beam_length)
    sums = torch.zeros(2, config.beam_length, device=batch.tokens.device)
    for first in range(0, positions, config.chunk):
        last = min(first + config.chunk, positions)

        def compute(drafter: Drafter, first: int = first, last: int = last) -> DepthSums:
            with mixed_precision(batch.tokens.device, config.mixed_precision):
                return unrolled_loss(
                    drafter,
                    embedding,
                    outputs,
                    batch.tokens,
                    batch.loss_mask,
                    config.beam_length,
                    first,
                    last,
                    depth_scale=scale,
                    config=config.loss,
                    doc_ids=batch.doc_ids,
                    next_tokens=batch.next_tokens if isinstance(batch, Passages) else None,
                )

        found = replica(compute, last=last_part and last == positions)
        found.total.backward()
        sums += torch.stack([found.loss, found.agreements])
    return sums
