# SPDX-License-Identifier: Apache-2.0
"""The recipe of a training: the drafter's shape, its data, the loss and the schedule."""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from redrafter_vllm.config import MAX_BEAM_LENGTH
from redrafter_vllm.utils.paths import user_place

LONGEST_REPEAT = 32  # tokens in a row that a text does not repeat by chance: measured, see docs/dev/log.md
MAX_SIZE = 1 << 24  # of anything that memory is allocated for: larger is a typing error, for which torch would overflow
MAX_LAYERS = 1024

MixedPrecision = Literal["auto", "bf16", "none"]


def check_sizes(holder: Any, *names: str) -> None:
    """Raises ValueError for sizes above `MAX_SIZE`; None is not checked."""
    for name in names:
        if (size := getattr(holder, name)) is not None and size > MAX_SIZE:
            raise ValueError(f"{name} must be at most {MAX_SIZE:,}, got {size:,}")


@dataclass(frozen=True)
class Budget:
    """A training ends after `max_steps` steps, or `epochs` passes over its texts, or after `max_seconds` of wall clock.

    Either `max_steps` or `epochs` is given. The schedule follows the larger of the used fractions of steps and time, so
    that it always runs to its end. A run that the clock ended is not repeatable to the bit: its number of steps depends
    on the machine.

    Attributes:
        max_steps: maximum number of steps; the same command with a higher limit continues a finished run.
        max_seconds: maximum wall clock in seconds (.inf: no limit); the schedule still runs to its end.
        epochs: passes over the training texts, in place of max_steps; 0.5 is half a pass. Responses that the target
            generates for the training are not counted.
    """

    max_steps: int | None = None
    max_seconds: float = math.inf
    epochs: float | None = None

    def __post_init__(self) -> None:
        if (self.max_steps is None) == (self.epochs is None):
            given = "neither is given" if self.epochs is None else f"got {self.max_steps} and {self.epochs:g}"
            raise ValueError(f"one of max_steps and epochs says how long to train, the other is null: {given}")
        if self.max_steps is not None and self.max_steps < 1:
            raise ValueError(f"max_steps must be at least 1, got {self.max_steps}")
        if self.epochs is not None and not 0 < self.epochs < math.inf:
            raise ValueError(f"epochs must be positive and finite, got {self.epochs}")
        if not self.max_seconds > 0:
            raise ValueError(f"max_seconds must be positive, got {self.max_seconds}")

    @property
    def steps(self) -> int:
        """The limit in steps.

        Raises ValueError where it is in epochs; see `in_steps`.
        """
        if self.max_steps is None:
            raise ValueError(f"{self.epochs} epochs have no number of steps before the data is read")
        return self.max_steps

    def in_steps(self, steps_per_epoch: float) -> "Budget":
        """This budget with its epochs as steps, the last one whole."""
        if self.epochs is None:
            return self
        # Rounded first, so that 1.1 epochs of 10 steps are 11 steps.
        return replace(self, max_steps=max(1, math.ceil(round(self.epochs * steps_per_epoch, 6))), epochs=None)

    def used(self, step: int, seconds: float) -> float:
        """Fraction used in [0, 1] after `step` steps and `seconds` seconds."""
        return min(1.0, max(step / self.steps, seconds / self.max_seconds))


@dataclass(frozen=True)
class LossConfig:
    """(1 − label_share) · τ² · KL(p_τ || q_τ) + label_share · cross-entropy of labels under q, in nats; plus
    hidden_weight · the distance of hidden states.

    p and q are the distributions of target and drafter at a position, p_τ and q_τ at temperature τ; the factor τ² keeps
    the gradient's size (arXiv 1503.02531). Labels are the target's top-1 tokens (`target`) or the text's tokens
    (`data`): `label_share=1, labels="data"` is the published recipe.

    Over a trimmed draft vocabulary p is restricted to it and renormalised. The drafter has no probability elsewhere, so
    the divergence from all of p is always infinite; from the restricted p it is 0 for a drafter that agrees with the
    target on the draft vocabulary. A label outside the draft vocabulary adds nothing.

    The distance is smooth L1, as in arXiv 2401.15077, section 4: between the input of the drafter's output layer and
    the target's hidden state that its LM head predicts the same token from, in units of that state's root mean square.

    Attributes:
        label_share: cross-entropy's share of the loss; the rest is divergence from the target.
        labels: the target's top-1 tokens, or those of the data.
        temperature: of the divergence.
        target_temperature: divides the target's logits alone, first. Below 1 the drafter learns how likely a token is
            to be the target's top-1 token rather than a sample of it: greedy decoding emits the top-1 token, and beams
            should be ranked by that probability (docs/dev/log.md).
        hidden_weight: factor of the distance of hidden states; above 0 it needs `target_head`.
    """

    label_share: float = 0.0
    labels: Literal["target", "data"] = "target"
    temperature: float = 1.0
    target_temperature: float = 1.0
    hidden_weight: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.label_share <= 1:
            raise ValueError(f"label_share must be in [0, 1], got {self.label_share}")
        if self.labels not in ("target", "data"):
            raise ValueError(f"labels must be 'target' or 'data', got {self.labels!r}")
        for name in ("temperature", "target_temperature"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)}")
        if not 0 <= self.hidden_weight < math.inf:
            raise ValueError(f"hidden_weight must be finite and not negative, got {self.hidden_weight}")


@dataclass(frozen=True, kw_only=True)
class ResponseSettings:
    """What every generation of responses needs: in a training (`ResponseConfig`), or before it (`ResponseJob`).

    Attributes:
        temperatures: sampling temperatures, used in turn; 0 is greedy.
        min_prompt: minimum number of tokens of a prompt that is cut from a text.
        max_prompt: maximum number of tokens of a prompt that is cut from a text.
        longest_repeat: cut a response where it repeats this many tokens in a row; 0 never cuts.
    """

    temperatures: tuple[float, ...] = (0.0, 0.0, 0.8)
    min_prompt: int = 16
    max_prompt: int = 160
    longest_repeat: int = LONGEST_REPEAT

    def __post_init__(self) -> None:
        check_sizes(self, "max_prompt", "longest_repeat")
        if self.longest_repeat < 0:
            raise ValueError(f"longest_repeat must not be negative, got {self.longest_repeat}")
        if not self.temperatures or not all(0 <= temperature < math.inf for temperature in self.temperatures):
            raise ValueError(f"temperatures must be given, finite and not negative, got {self.temperatures}")
        if not 1 <= self.min_prompt <= self.max_prompt:
            raise ValueError(f"need 1 <= min_prompt <= max_prompt, got {self.min_prompt} and {self.max_prompt}")


@dataclass(frozen=True)
class ResponseConfig(ResponseSettings):
    """Responses of the target as training data: serving drafts for such text, not for the corpus.

    Attributes:
        count: maximum number of responses; prompts are distinct, and none gets two greedy responses.
        batch_size: responses generated at once.
        folders: folders of `redrafter respond`, all of whose responses are used instead of generating any; where the
            data is such a folder, too, their texts are added to it.
        any_target: accept folders from another target with the same vocabulary.
    """

    count: int = 256
    batch_size: int = 64
    folders: tuple[str, ...] = ()
    any_target: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "folders", tuple(user_place(folder) for folder in self.folders))
        check_sizes(self, "count", "batch_size")
        if self.count < 0 or self.batch_size < 1:
            raise ValueError(f"count must be >= 0 and batch_size >= 1, got {self.count} and {self.batch_size}")


SIZES = (
    "beam_length",
    "exit_dim",
    "draft_vocab_size",
    "window",
    "batch_size",
    "micro_batch_size",
    "chunk",
    "passage",
    "mixed_batches",
)


@dataclass(frozen=True)
class DistillConfig:
    """Options of one distillation: the drafter's shape, its data, the schedule.

    `depth_decay` weights the loss at depth t by depth_decay**(t-1): a deep draft token counts only when those above it
    are accepted.

    Attributes:
        beam_length: number of draft tokens to train for, without the root; 1 to 32, as in serving.
        depth_decay: the loss at depth t counts depth_decay^(t-1).
        exit_dim: width of the drafter's head (default: twice the target's hidden size).
        num_draft_layers: residual blocks in the drafter's head.
        rnn: whether the state is a recurrence; false sums embeddings.
        target_head: use the target's LM head as the drafter's output layer, untrained, so that the drafter has to
            predict the target's hidden states; `exit_dim` is then the target's hidden size. A bias or a scale of the
            target's logits is not taken over.
        draft_vocab_size: trim the drafter's vocabulary to this many tokens, the most frequent in the data.
        window: tokens per row.
        packing: fill each row with several conversations; false gives each its own row.
        fixed_windows: cut source files into windows once and only shuffle them in each epoch, instead of cutting them
            anew; always true with a hidden_cache.
        batch_size: rows per step, over all workers together.
        micro_batch_size: rows that a worker computes at once; it accumulates the gradients of its rows of a step over
            as many passes as that takes, with the same result up to rounding (default: all of them at once).
        response_fraction: fraction of the rows that are responses of the target.
        learning_rate: peak learning rate.
        warmup: fraction of the training over which the learning rate rises.
        weight_decay: of the inner matrices.
        max_grad_norm: gradients are scaled down to this norm.
        chunk: context positions per row whose logits are in memory at once.
        passage: with a hidden_cache, positions of a text that stay together when those of several batches are
            shuffled, so that a step's gradient is from many texts; 0 keeps rows whole.
        mixed_batches: batches that are shuffled together. Their hidden states are in the CPU's memory, of SmolLM2-135M
            2.4 MB for 2,048 tokens, of a target with 4,096 dimensions 17 MB.
        seed: of the drafter's first weights and of the data's order.
        mixed_precision: bf16 computes products in bfloat16, none in the weights' float32; auto is bf16 on GPUs and on
            processors with instructions for it (AVX-512 BF16, AMX).
    """

    budget: Budget
    beam_length: int = 4
    depth_decay: float = 0.8
    exit_dim: int | None = None
    num_draft_layers: int = 2
    rnn: bool = True
    target_head: bool = False
    draft_vocab_size: int | None = None
    # The target at temperature 0.2 · 1.5 = 0.3, fitted by the drafter at 1.5, which then drafts at 1: docs/dev/log.md.
    loss: LossConfig = field(default_factory=lambda: LossConfig(temperature=1.5, target_temperature=0.2))
    window: int = 256
    packing: bool = True
    fixed_windows: bool = False
    batch_size: int = 4
    micro_batch_size: int | None = None
    response_fraction: float = 0.5
    responses: ResponseConfig = field(default_factory=ResponseConfig)
    learning_rate: float = 1e-2
    warmup: float = 0.05
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    chunk: int = 128
    passage: int = 8
    mixed_batches: int = 32
    seed: int = 0
    mixed_precision: MixedPrecision = "auto"

    def __post_init__(self) -> None:
        check_sizes(self, *SIZES)
        if self.micro_batch_size is not None and self.micro_batch_size < 1:
            raise ValueError(f"micro_batch_size must be at least 1, got {self.micro_batch_size}")
        if self.exit_dim is not None and self.exit_dim < 1:
            raise ValueError(f"exit_dim must be at least 1, got {self.exit_dim}")
        if not 0 <= self.num_draft_layers <= MAX_LAYERS:
            raise ValueError(f"num_draft_layers must be in [0, {MAX_LAYERS}], got {self.num_draft_layers}")
        if not 0 <= self.seed < 1 << 63:
            raise ValueError(f"seed must be in [0, 2^63), got {self.seed}")
        if self.loss.hidden_weight and not self.target_head:
            raise ValueError(
                f"hidden_weight {self.loss.hidden_weight} compares the output layer's input with the target's hidden "
                "states, which needs target_head"
            )
        if self.beam_length < 1 or self.window <= self.beam_length:
            raise ValueError(f"need 1 <= beam_length < window, got {self.beam_length} and {self.window}")
        if self.beam_length > MAX_BEAM_LENGTH:
            raise ValueError(
                f"beam_length must be at most {MAX_BEAM_LENGTH}, as serving drafts no more, got {self.beam_length}"
            )
        if self.mixed_precision not in get_args(MixedPrecision):
            raise ValueError(f"mixed_precision must be auto, bf16 or none, got {self.mixed_precision!r}")
        if not 0 < self.depth_decay <= 1:
            raise ValueError(f"depth_decay must be in (0, 1], got {self.depth_decay}")
        if self.draft_vocab_size is not None and self.draft_vocab_size < 1:
            raise ValueError(f"draft_vocab_size must be at least 1, got {self.draft_vocab_size}")
        if not 0 <= self.response_fraction <= 1:
            raise ValueError(f"response_fraction must be in [0, 1], got {self.response_fraction}")
        if self.responses.folders and not self.response_fraction:
            raise ValueError("responses.folders are given, but with a response_fraction of 0 they are not used")
        if self.response_fraction and self.responses.max_prompt >= self.window:
            raise ValueError(f"max_prompt {self.responses.max_prompt} leaves no response in windows of {self.window}")
        if min(self.batch_size, self.chunk) < 1:
            raise ValueError(f"batch_size and chunk must be at least 1, got {self.batch_size} and {self.chunk}")
        if self.passage < 0 or self.mixed_batches < 1:
            raise ValueError(
                f"passage must not be negative and mixed_batches at least 1, got {self.passage} and "
                f"{self.mixed_batches}"
            )
        if not (0 < self.learning_rate < math.inf and self.max_grad_norm > 0 and 0 < self.warmup < 1):
            raise ValueError("learning_rate and max_grad_norm must be positive, warmup a fraction in (0, 1)")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay must not be negative, got {self.weight_decay}")

    def absolute(self) -> "DistillConfig":
        """The configuration with absolute paths, for a process that runs in another folder."""
        folders = tuple(str(Path(folder).expanduser().absolute()) for folder in self.responses.folders)
        return replace(self, responses=replace(self.responses, folders=folders))

    @property
    def data_rows(self) -> int:
        """Rows of a step that are from the data, and not responses that the target generates for the training."""
        return self.batch_size - round(self.batch_size * self.response_fraction)

    def with_steps(self, steps_per_epoch: float) -> "DistillConfig":
        """The configuration with the budget's epochs as steps."""
        return replace(self, budget=self.budget.in_steps(steps_per_epoch))

    def rows_at_once(self, workers: int) -> int:
        """Rows that one of `workers` processes computes at once, at most."""
        rows = math.ceil(self.batch_size / workers)
        return rows if self.micro_batch_size is None else min(rows, self.micro_batch_size)

    def drafter_width(self, hidden_size: int) -> int:
        """`exit_dim` of the drafter for a target of this hidden size.

        Raises ValueError where it must be the hidden size, and is not.
        """
        if not self.target_head:
            return self.exit_dim or 2 * hidden_size
        if self.exit_dim not in (None, hidden_size):
            raise ValueError(
                f"target_head needs an exit_dim of the target's hidden size, {hidden_size}, not {self.exit_dim}: the "
                "target's LM head takes hidden states"
            )
        return hidden_size

    @property
    def depth_weights(self) -> tuple[float, ...]:
        """Weight of each depth 1..beam_length, summing to 1."""
        raw = [self.depth_decay**t for t in range(self.beam_length)]
        return tuple(w / sum(raw) for w in raw)


_LONG = DistillConfig(Budget(max_steps=9000), responses=ResponseConfig(count=6144, batch_size=256))
RECIPES = {
    # As `long`, but limited by steps alone, so that it can be repeated to the bit.
    "standard": _LONG,
    # Generating enough responses for 400 steps takes as long as training; a few that are repeated are worse than none.
    "short": DistillConfig(
        Budget(max_steps=400, max_seconds=90), response_fraction=0.0, responses=ResponseConfig(count=192)
    ),
    "long": replace(_LONG, budget=replace(_LONG.budget, max_seconds=2400)),
}
