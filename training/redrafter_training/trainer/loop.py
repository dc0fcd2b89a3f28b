# SPDX-License-Identifier: Apache-2.0
"""The drafter's training loop. Processes and storage are behind its `TrainContext`."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from redrafter_training.config.recipe import DistillConfig
from redrafter_training.data.passages import Mix, mixed
from redrafter_training.data.windows import Windows
from redrafter_training.distributed.context import LocalContext, TrainContext
from redrafter_training.target.model import Target
from redrafter_training.trainer.divergence import Guard
from redrafter_training.trainer.early_stopping import ending, is_over, keep_best
from redrafter_training.trainer.gradients import Replica, StepFigures, accumulate_gradients
from redrafter_training.trainer.lr_schedule import learning_rate_scale, steps
from redrafter_training.trainer.optimizer import SplitOptimizer
from redrafter_training.trainer.pace import Pace
from redrafter_training.trainer.state import Progress, budget_growth, capture, read_state, restore, write_state
from redrafter_training.utils.command import TrainingStoppedError
from redrafter_vllm.checkpoint.config import DrafterConfig
from redrafter_vllm.model.drafter import Drafter


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


def add_blocks(drafter: Drafter, count: int) -> Drafter:
    """`drafter` with `count` further residual blocks behind its own.

    Weights and biases of the new ones are zero, so that x + silu(0) = x: what the drafter computes does not change,
    and they have gradients, as silu's slope at 0 is one half.
    """
    if count == 0:
        return drafter
    kept = drafter.config.num_draft_layers
    deeper = Drafter(replace(drafter.config, num_draft_layers=kept + count)).to(drafter.output.weight.device)
    with torch.no_grad():
        for parameter in deeper.lm_head[kept:-1].parameters():
            parameter.zero_()
    # The output layer's name has its place in the head.
    old, new = f"lm_head.{kept}.", f"lm_head.{kept + count}."
    moved = {name.replace(old, new): value for name, value in drafter.state_dict().items()}
    deeper.load_state_dict(deeper.state_dict() | moved)
    return deeper


def _head_rows(drafter: Drafter, target: Target) -> Tensor:
    kept = drafter.draft_tokens
    return target.head_weight if kept is None else target.head_weight[kept]


def inner_matrices(drafter: Drafter) -> list[nn.Parameter]:
    """The matrices that Muon trains: all but the output layer."""
    return [p for p in drafter.parameters() if p.dim() == 2 and p is not drafter.output.weight]


Evaluate = Callable[[Drafter, int], Mapping[str, float]]


@dataclass(frozen=True)
class Hooks:
    """Evaluation, checkpoints and logs during training; equal in all processes."""

    evaluate: Evaluate | None = None  # named figures of the drafter after this number of steps
    evaluate_every: int = 0  # 0: only at the end
    patience: int = 0  # see `early_stopping`; 0: never stop early
    checkpoint_every: int = 0  # 0: only at the end
    log_every: int = 10
    log: Callable[[int, Mapping[str, float]], None] = lambda step, figures: None
    steps_per_epoch: float = 0.0  # for the logs; 0: unknown
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

    With `hooks.patience` it may end earlier, and `drafter` gets the weights of its best evaluation.

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
    remaining = step_rows(batches, target, config, context, progress.step)
    pace = Pace()
    drafter.train()
    ticks = steps(
        config.budget, "drafter", quiet=quiet, first=progress.step, seconds=progress.seconds, agree=context.of_first
    )
    with closing(ticks), context.stoppable():
        for tick in ticks:
            if is_over(progress, hooks.patience):
                break
            with pace.step():
                rows, tokens = next(remaining)
                batch = rows.to(context.device)
                figures = accumulate_gradients(replica, embedding, target, batch, config, context)
                norm = float(nn.utils.clip_grad_norm_(drafter.parameters(), config.max_grad_norm))
                guard.check(tick.step, figures.loss, norm, batch)
                scale = learning_rate_scale(tick.used, config.warmup)
                optimizer.step(scale)
                pace.add(tokens)
            progress.step, progress.seconds = tick.step + 1, tick.seconds
            progress.history.append([figures.loss, *figures.loss_by_depth, *figures.agreement])
            tick.bar.set_postfix(loss=f"{figures.loss:.3f}", first=f"{figures.agreement[0]:.2f}", refresh=False)
            if _due(progress.step, hooks.log_every):
                course = {
                    "train/learning_rate": config.learning_rate * scale,
                    "train/gradient_norm": norm,
                    "train/tokens_per_second": pace.rate(),
                }
                _log(course, figures, progress, hooks)
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
    if hooks.patience and progress.best is not None:
        drafter.load_state_dict(progress.best.weights)
        if not quiet:
            print(ending(progress, hooks.patience))
    drafter.eval()
    return [StepFigures.from_row(row) for row in progress.history]


def step_rows(
    batches: Iterable[Windows], target: Target, config: DistillConfig, context: TrainContext, first: int
) -> Iterator[tuple[Windows, int]]:
    """This process's rows of each step from `first` on, and the number of tokens of all processes' rows.

    Where hidden states are stored, rows are passages of many batches, unless `config.passage` is 0.
    """
    rank, size = context.rank, context.world_size
    if not (config.passage and target.stores_states):
        yield from ((rows.share(rank, size), rows.num_tokens) for rows in islice(batches, first, None))
        return
    mix = Mix(config.mixed_batches, config.passage, config.beam_length, config.budget.steps, config.seed)
    shares = (rows.share(rank, size) for rows in batches)

    def states(windows: Windows) -> tuple[Tensor, Tensor]:
        return target.states(windows.tokens, windows.positions)

    for passages in mixed(shares, mix, states, first, rank):
        yield passages, passages.num_tokens * size


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _log(course: dict[str, float], figures: StepFigures, progress: Progress, hooks: Hooks) -> None:
    """Logs a step; `course` is what is kept of it in checkpoints beside the step's figures."""
    if hooks.steps_per_epoch:
        course["train/epoch"] = progress.step / hooks.steps_per_epoch
    progress.course.append((progress.step, course))
    hooks.log(progress.step, figures.named() | course)


def _evaluate(drafter: Drafter, progress: Progress, hooks: Hooks) -> None:
    if hooks.evaluate is None:
        return
    drafter.eval()
    figures = dict(hooks.evaluate(drafter, progress.step))
    drafter.train()
    progress.evaluations.append((progress.step, figures))
    if hooks.patience:
        keep_best(progress, drafter)
    hooks.log(progress.step, figures)


def _save(drafter: Drafter, optimizer: SplitOptimizer, progress: Progress, hooks: Hooks, context: TrainContext) -> None:
    state = capture(drafter, optimizer, progress, hooks.identity, context)
    metrics = StepFigures.from_row(progress.history[-1]).named() if progress.history else {}
    if progress.evaluations:
        metrics = metrics | progress.evaluations[-1][1]
    context.report(progress.step, metrics, partial(write_state, state))
