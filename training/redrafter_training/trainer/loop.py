# SPDX-License-Identifier: Apache-2.0
"""The drafter's training loop. Processes and storage are behind its `TrainContext`."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from redrafter_training.config.recipe import DistillConfig
from redrafter_training.data.windows import Windows
from redrafter_training.distributed.context import LocalContext, TrainContext
from redrafter_training.target.model import Target
from redrafter_training.target.precision import mixed_precision
from redrafter_training.trainer.divergence import Guard
from redrafter_training.trainer.loss import DepthSums, num_positions, unrolled_loss
from redrafter_training.trainer.lr_schedule import learning_rate_scale, steps
from redrafter_training.trainer.optimizer import SplitOptimizer
from redrafter_training.trainer.state import Progress, budget_growth, capture, read_state, restore, write_state
from redrafter_training.utils.command import TrainingStoppedError
from redrafter_vllm.checkpoint.config import DrafterConfig
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


def build_drafter(target: Target, config: DistillConfig, draft_tokens: Tensor | None = None) -> Drafter:
    """A seeded drafter of the target's sizes, in float32 on the target's device.

    `draft_tokens` [D], ascending target ids, are the draft vocabulary if `config` has a `draft_vocab_size`.

    Without an input projection the RNN state reaches the output layer at its own width: that half of the layer is
    initialised to the target's LM head and the context's half to zero, which saves much of a short training
    (docs/dev/log.md). With `target_head` the output layer is that head, and is not trained.

    Raises ValueError where `exit_dim` does not fit the target's head.
    """
    torch.manual_seed(config.seed)
    drafter = Drafter(
        DrafterConfig(
            vocab_size=target.vocab_size,
            hidden_size=target.hidden_size,
            exit_dim=config.drafter_width(target.hidden_size),
            num_draft_layers=config.num_draft_layers,
            rnn=config.rnn,
            draft_vocab_size=config.draft_vocab_size,
        )
    ).to(target.device)
    if draft_tokens is not None:
        drafter.set_draft_tokens(draft_tokens)
    if config.target_head:
        use_target_head(drafter, target)
    elif not drafter.config.has_input_proj:
        with torch.no_grad():
            drafter.output.weight.zero_()
            drafter.output.weight[:, target.hidden_size :] = _head_rows(drafter, target)
    return drafter


def use_target_head(drafter: Drafter, target: Target) -> None:
    """Replaces the output layer with the target's LM head, which is not trained.

    Raises ValueError where the drafter's `exit_dim` is not the target's hidden size.
    """
    if drafter.config.exit_dim != target.hidden_size:
        raise ValueError(
            f"target_head needs a drafter with an exit_dim of the target's hidden size, {target.hidden_size}, not "
            f"{drafter.config.exit_dim}"
        )
    with torch.no_grad():
        drafter.output.weight.copy_(_head_rows(drafter, target))
    drafter.output.weight.requires_grad_(False)


def _head_rows(drafter: Drafter, target: Target) -> Tensor:
    kept = drafter.draft_tokens
    return target.head_weight if kept is None else target.head_weight[kept]


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
    """Adds the batch's gradient chunk by chunk, so that only one chunk's logits are in memory at a time.

    Gradient and figures are means over the positions of all processes together, however rows are distributed.
    """
    with mixed_precision(batch.tokens.device, config.mixed_precision):
        outputs = target.outputs(batch.tokens, batch.positions, replica.drafter.draft_tokens)
    weights = torch.tensor(config.depth_weights, device=batch.tokens.device)
    positions = num_positions(batch.tokens.shape[1], config.beam_length)
    own = torch.stack([batch.terms(t, 0, positions).sum() for t in range(1, config.beam_length + 1)])
    counts = context.total(own).clamp(min=1)
    # Data parallelism averages over processes, and the counts are already totals over processes.
    scale = weights / counts * context.world_size
    loss, agreements = torch.zeros_like(weights), torch.zeros_like(weights)
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
                )

        sums = replica(compute, last=last == positions)
        sums.total.backward()
        loss += sums.loss
        agreements += sums.agreements
    loss_T, agreement_T = context.total(torch.stack([loss, agreements])) / counts
    return StepFigures(float((loss_T * weights).sum()), tuple(loss_T.tolist()), tuple(agreement_T.tolist()))


def inner_matrices(drafter: Drafter) -> list[nn.Parameter]:
    """The matrices that Muon trains: all but the output layer."""
    return [p for p in drafter.parameters() if p.dim() == 2 and p is not drafter.output.weight]


Evaluate = Callable[[Drafter, int], Mapping[str, float]]


@dataclass(frozen=True)
class Hooks:
    """Evaluation, checkpoints and logs during training; equal in all processes."""

    evaluate: Evaluate | None = None  # named figures of the drafter after this number of steps
    evaluate_every: int = 0  # 0: only at the end
    checkpoint_every: int = 0  # 0: only at the end
    log_every: int = 10
    log: Callable[[int, Mapping[str, float]], None] = lambda step, figures: None
    identity: Mapping[str, Any] = field(default_factory=dict)  # must equal that of a checkpoint to continue it
    max_rise: float = 3.0  # see `Guard`


def distill(
    drafter: Drafter,
    target: Target,
    batches: Iterable[Windows],
    config: DistillConfig,
    *,
    context: TrainContext | None = None,
    hooks: Hooks | None = None,
    quiet: bool = False,
) -> list[StepFigures]:
    """Trains `drafter` in place until the budget is used; returns the figures of every step, resumed ones included.

    Args:
        batches: the batches of the whole job, from the first on, the same in every process and every run: a process
            uses its share of each batch's rows, and a resumed run skips the batches that it has used.
        context: processes and storage; by default this process alone, without checkpoints.

    Raises:
        DivergedError: a loss or gradient is not finite, or the loss rose far; has the step and the batch. The drafter
            keeps its weights from before the step.
        ResumeError: the context's checkpoint belongs to another training.
        CheckpointWriteError: a checkpoint could not be stored.
        TrainingStoppedError: the context requested an early stop; a checkpoint is stored.
    """
    context = context or LocalContext(device=target.device)
    hooks = hooks or Hooks()
    optimizer = SplitOptimizer(
        drafter,
        inner_matrices(drafter),
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
    )
    progress = Progress()
    if checkpoint := context.latest_checkpoint():
        state = read_state(checkpoint, context.device)
        progress = restore(state, drafter, optimizer, hooks.identity, context)
        if (grown := budget_growth(state, hooks.identity)) and not quiet:
            used = config.budget.used(progress.step, progress.seconds)
            print(
                f"continuing from step {progress.step} with a larger budget ({', '.join(grown)}): the learning rate "
                f"follows the longer schedule from there, at {learning_rate_scale(used, config.warmup):.0%} of its peak"
            )
    replica = Replica(drafter, context)
    embedding = target.embedding.float()
    guard = Guard(hooks.max_rise, [row[0] for row in progress.history])
    saved = progress.step if checkpoint else -1
    remaining = islice(batches, progress.step, None)
    drafter.train()
    ticks = steps(
        config.budget, "drafter", quiet=quiet, first=progress.step, seconds=progress.seconds, agree=context.of_first
    )
    with closing(ticks), context.stoppable():
        for tick in ticks:
            batch = next(remaining).share(context.rank, context.world_size).to(context.device)
            figures = accumulate_gradients(replica, embedding, target, batch, config, context)
            norm = float(nn.utils.clip_grad_norm_(drafter.parameters(), config.max_grad_norm))
            guard.check(tick.step, figures.loss, norm, batch)
            scale = learning_rate_scale(tick.used, config.warmup)
            optimizer.step(scale)
            progress.step, progress.seconds = tick.step + 1, tick.seconds
            progress.history.append([figures.loss, *figures.loss_by_depth, *figures.agreement])
            tick.bar.set_postfix(loss=f"{figures.loss:.3f}", first=f"{figures.agreement[0]:.2f}", refresh=False)
            if _due(progress.step, hooks.log_every):
                hooks.log(progress.step, figures.named() | {"train/learning_rate": config.learning_rate * scale})
            if _due(progress.step, hooks.evaluate_every):
                _evaluate(drafter, progress, hooks)
            stopped = context.stop_wanted()
            if stopped or _due(progress.step, hooks.checkpoint_every):
                _save(drafter, optimizer, progress, hooks, context)
                saved = progress.step
            if stopped:
                raise TrainingStoppedError(f"stopped after step {progress.step}")
        if not progress.evaluations or progress.evaluations[-1][0] != progress.step:
            _evaluate(drafter, progress, hooks)
            saved = -1 if hooks.evaluate else saved  # the checkpoint of this step lacks the new evaluation
        if saved != progress.step:
            _save(drafter, optimizer, progress, hooks, context)
        if context.stop_wanted():
            raise TrainingStoppedError(f"stopped after step {progress.step}, the last one")
    drafter.eval()
    return [StepFigures.from_row(row) for row in progress.history]


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _evaluate(drafter: Drafter, progress: Progress, hooks: Hooks) -> None:
    if hooks.evaluate is None:
        return
    drafter.eval()
    figures = dict(hooks.evaluate(drafter, progress.step))
    drafter.train()
    progress.evaluations.append((progress.step, figures))
    hooks.log(progress.step, figures)


def _save(drafter: Drafter, optimizer: SplitOptimizer, progress: Progress, hooks: Hooks, context: TrainContext) -> None:
    state = capture(drafter, optimizer, progress, hooks.identity, context)
    metrics = StepFigures.from_row(progress.history[-1]).named() if progress.history else {}
    if progress.evaluations:
        metrics = metrics | progress.evaluations[-1][1]
    context.report(progress.step, metrics, partial(write_state, state))
