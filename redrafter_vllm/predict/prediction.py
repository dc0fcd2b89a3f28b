# SPDX-License-Identifier: Apache-2.0
"""Tokens per step, duration of a step and speed-up by batch size, for fixed trees and for budgets that follow the load.

Budgets are chosen by the code that serves (`redrafter_vllm.adaptive`), with durations from the model in the place of
measured ones, and so are the beam steps of a round.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from redrafter_vllm.adaptive.budget import Budget, choose_budget, given_budget
from redrafter_vllm.adaptive.costs import MeasuredCosts, StepCosts
from redrafter_vllm.adaptive.outlook import WHOLE_ROUND, WORTHWHILE
from redrafter_vllm.checkpoint.config import DrafterConfig, tensor_shapes
from redrafter_vllm.config import DraftingConfig
from redrafter_vllm.predict.acceptance import Acceptance
from redrafter_vllm.predict.gpu import Gpu
from redrafter_vllm.predict.shapes import LlamaShape, count
from redrafter_vllm.predict.work import NUMBER_BYTES, cache_bytes, drafting_round, seconds, target_step

USABLE_MEMORY = 0.9  # about vLLM's default `gpu_memory_utilization`
ROOM = 1.3  # weights are to leave room for a cache of about a third of them
GROUPS = (1, 2, 4, 8)  # GPUs of a tensor-parallel group


@dataclass(frozen=True)
class Setup:
    """What is served where. Raises ValueError for sizes that do not go together."""

    gpu: Gpu
    parallel: int  # GPUs of the tensor-parallel group
    shape: LlamaShape
    drafter: DrafterConfig
    context: int  # tokens in the cache of each request

    def __post_init__(self) -> None:
        if (self.drafter.hidden_size, self.drafter.vocab_size) != (self.shape.hidden_size, self.shape.vocab_size):
            raise ValueError(
                f"the drafter is for a hidden size of {self.drafter.hidden_size:,} and {self.drafter.vocab_size:,} "
                f"tokens, the target has {self.shape.hidden_size:,} and {self.shape.vocab_size:,}"
            )
        if self.context < 0:
            raise ValueError(f"a context has at least 0 tokens, not {self.context}")
        if self.parallel < 1 or self.shape.num_attention_heads % self.parallel:
            raise ValueError(
                f"{self.shape.num_attention_heads} attention heads cannot be split over {self.parallel} GPUs evenly"
            )
        if self.needed(0) > self.available:
            raise ValueError(
                f"target and drafter need {self.needed(0) / 1e9:,.0f} GB, {self.parallel} of these GPUs have "
                f"{self.available / 1e9:,.0f}: give more with --tensor-parallel"
            )

    def needed(self, batch: int) -> float:
        """Bytes of weights and cache on all GPUs; each keeps the drafter but for its slice of the output layer."""
        drafter = count(tensor_shapes(self.drafter))
        head = self.drafter.output_size * self.drafter.exit_dim
        kept = self.shape.num_parameters + self.parallel * (drafter - head) + head
        return NUMBER_BYTES * kept + batch * self.context * cache_bytes(self.shape)

    @property
    def available(self) -> float:
        """Bytes that an engine may use."""
        return USABLE_MEMORY * 1e9 * self.gpu.memory_gb * self.parallel

    def fits(self, batch: int) -> bool:
        """Whether weights and cache have room."""
        return self.needed(batch) <= self.available


@dataclass(frozen=True)
class Prediction:
    """One tree, or none, at one batch size. Durations in milliseconds."""

    batch: int
    tree: DraftingConfig | None  # None is plain decoding
    nodes: float  # verified, per request
    tokens_per_step: float  # emitted, per request
    target_ms: float
    drafting_ms: float
    tokens_per_second: float  # of all requests
    speedup: float
    fits: bool  # in memory


def smallest_parallel(gpu: Gpu, shape: LlamaShape) -> int:
    """The smallest of `GROUPS` whose memory holds the target with room for a cache; the largest if none does."""
    needed = ROOM * NUMBER_BYTES * shape.num_parameters
    return next((group for group in GROUPS if needed <= USABLE_MEMORY * 1e9 * gpu.memory_gb * group), GROUPS[-1])


def predict(
    setup: Setup, acceptance: Acceptance, trees: Sequence[DraftingConfig], batches: Sequence[int]
) -> list[Prediction]:
    """Plain decoding and every tree at every batch size, in this order.

    Raises:
        AcceptanceError: The acceptance of a tree is not known.
    """
    rounds = [_rounds(acceptance, tree) for tree in trees]
    found = []
    for batch in batches:
        plain = _plain(setup, batch)
        found.append(plain)
        found += [_drafted(setup, tree, own, plain) for tree, own in zip(trees, rounds, strict=True)]
    return found


def _rounds(acceptance: Acceptance, tree: DraftingConfig) -> list[tuple[DraftingConfig, np.ndarray]]:
    """What a round may draw, with the survival of its nodes: fewer beam steps, too, where trees adapt; no copies."""
    lengths = [steps for steps in tree.round_lengths if steps > 0] if tree.adaptive else [tree.beam_length]
    drawn = [replace(tree, beam_length=length) for length in lengths]
    return [(each, acceptance.nodes(each)) for each in drawn]


def step_costs(setup: Setup, tree: DraftingConfig | None, batch: int) -> StepCosts:
    """Durations of steps of up to `batch` requests, as serving keeps them.

    The model is linear in rows, so that two points say all of it.
    """
    most = batch * (1 + (tree.num_speculative_tokens if tree else 0)) + 1
    has_trees = tree is not None and not tree.is_chain

    def target(rows: int) -> float:
        work = target_step(setup.shape, rows, batch, setup.context, setup.parallel, has_trees=has_trees)
        return seconds(work, setup.gpu, setup.parallel) + 1e-3 * setup.gpu.step_ms

    drafting = 0.0
    if tree is not None:
        drafting = seconds(drafting_round(setup.drafter, tree, batch, setup.parallel), setup.gpu, setup.parallel)
    measured = MeasuredCosts([(rows, target(rows)) for rows in (1, most)], 0.0, [(batch, drafting)])
    return StepCosts(measured, most, batch)


def _plain(setup: Setup, batch: int) -> Prediction:
    target = float(step_costs(setup, None, batch).verification(batch, batch, batch)[0])
    return Prediction(batch, None, 0.0, 1.0, 1e3 * target, 0.0, batch / target, 1.0, setup.fits(batch))


def _drafted(
    setup: Setup, tree: DraftingConfig, rounds: list[tuple[DraftingConfig, np.ndarray]], plain: Prediction
) -> Prediction:
    """The best of the rounds; for an adaptive tree none, where none of them pays (adaptive/outlook.py)."""
    found = [_with_rounds(setup, tree, drawn, nodes, plain) for drawn, nodes in rounds]
    best = max(found, key=lambda one: one.tokens_per_second)
    if tree.adaptive and best.speedup < WORTHWHILE:
        return replace(plain, tree=tree)
    return best


def _with_rounds(
    setup: Setup, tree: DraftingConfig, drawn: DraftingConfig, nodes: np.ndarray, plain: Prediction
) -> Prediction:
    """What rounds bring that draw `drawn`; if that is less than the tree, some rounds are whole, as in serving."""
    batch = plain.batch
    costs = step_costs(setup, drawn, batch)
    survival = np.tile(nodes, (batch, 1))
    target = costs.verification(batch, batch + survival.size, batch)
    drafting = costs.drafting(batch)
    if drawn.beam_length < tree.beam_length:
        drafting += (step_costs(setup, tree, batch).drafting(batch) - drafting) / WHOLE_ROUND
    budget = _budget(survival, batch, target + drafting, adaptive=bool(tree.adaptive))
    speed = budget.tokens / budget.seconds
    return Prediction(
        batch=batch,
        tree=tree,
        nodes=float(budget.num_nodes.sum() / batch),
        tokens_per_step=budget.tokens / batch,
        target_ms=1e3 * (budget.seconds - drafting),
        drafting_ms=1e3 * drafting,
        tokens_per_second=speed,
        speedup=speed / plain.tokens_per_second,
        fits=plain.fits,
    )


def _budget(survival: np.ndarray, batch: int, durations: np.ndarray, *, adaptive: bool) -> Budget:
    if adaptive:
        return choose_budget(survival, batch, durations)
    return given_budget(survival, batch, durations, survival.size)
