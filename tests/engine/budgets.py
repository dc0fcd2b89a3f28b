# SPDX-License-Identifier: Apache-2.0
"""Budgets for engines whose trees adapt on a CPU: some that no policy would choose, and the policy's own."""

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
from torch import Tensor

from redrafter_vllm.adaptive.budget import Budget
from redrafter_vllm.adaptive.costs import MeasuredCosts
from redrafter_vllm.adaptive.outlook import Outlook
from redrafter_vllm.adaptive.pause import DraftingPause
from redrafter_vllm.adaptive.survival import SurvivalEstimator
from redrafter_vllm.integration.worker import adaptive_trees
from redrafter_vllm.integration.worker.adaptive_trees import AdaptiveTrees, adapt_trees
from tests.engine.generation import request_name, runner

Nodes = dict[str, int]  # that a step verifies, by the request's name


@contextmanager
def random_budgets(seed: int) -> Iterator[list[int]]:
    """Any budget for each request, none included, and every round drawn, with any number of beam steps.

    Yields the budgets, summed by step.
    """
    rng, chosen = random.Random(seed), list[int]()

    def choose(trees: AdaptiveTrees, rows: np.ndarray, drawn: np.ndarray) -> np.ndarray:
        style = rng.randrange(4)
        nodes = [rng.randint(0, count) if style == 3 else (0, count // 2, count)[style] for count in drawn.tolist()]
        chosen.append(sum(nodes))
        return np.array(nodes)

    with (
        _budgets(choose),
        patch.object(Outlook, "draws", lambda outlook, _: rng.randint(1, outlook._costs.beam_length)),
        # Scripted trees are not those of the beams that were ranked.
        patch.object(SurvivalEstimator, "store", lambda *_: None),
    ):
        yield chosen


@contextmanager
def peeking_budgets(draws: np.ndarray, is_hidden: np.ndarray, prompt_length: int) -> Iterator[list[int]]:
    """Budgets that depend on what the target is about to draw in the same step, as no policy's may.

    The child that the target is about to draw under the root is left out, with all nodes after it in the list, if the
    token to be drawn under that child is to be hidden from the step. All other trees are verified whole.

    Args:
        draws: [requests, length] token that the target draws at each place of the request with this number as its name.
        is_hidden: [requests, length] whether a token is to be hidden.
        prompt_length: Of every request.

    Yields the numbers of nodes that were left out.
    """
    left_out = list[int]()

    def choose(trees: AdaptiveTrees, rows: np.ndarray, drawn: np.ndarray) -> np.ndarray:
        states, stored = trees.runner.req_states, trees.speculator.rows
        nodes = drawn.copy()
        for place, row in enumerate(rows.tolist()):
            request, known = int(request_name(states, row)), int(states.total_len.gpu[row]) - prompt_length
            if known + 1 >= draws.shape[1] or not is_hidden[request, known + 1]:
                continue
            is_child = (stored.parents[row] == -1) & (stored.tokens[row] == int(draws[request, known]))
            for node in is_child[: drawn[place]].nonzero().flatten().tolist():
                nodes[place] = node
                left_out.append(int(drawn[place]) - node)
        return nodes

    with _budgets(choose):
        yield left_out


@contextmanager
def _budgets(choose: Callable[[AdaptiveTrees, np.ndarray, np.ndarray], np.ndarray]) -> Iterator[None]:
    """In every step the nodes that `choose(trees, rows, nodes that were drawn)` returns, and rounds in every step."""

    def budget(self: AdaptiveTrees, rows: np.ndarray, num_drafts: np.ndarray, *_: int) -> Budget:
        drawn = np.minimum(self.speculator.rows.num_nodes[rows].numpy(), num_drafts)
        return Budget(choose(self, rows, drawn), 1.0, 1.0)

    with (
        patch.object(AdaptiveTrees, "_choose", budget),
        patch.object(DraftingPause, "is_paused", False),
        patch.object(Outlook, "skips", lambda *_: False),
    ):
        yield


@contextmanager
def chosen_budgets(llm: Any, costs: MeasuredCosts, seed: int = 0, spread: float = 1.25) -> Iterator[list[Nodes]]:
    """A policy that knows nothing yet chooses budgets, on a machine with these costs instead of this one.

    Every duration varies by chance, by up to a factor of `spread`, so that costs and budgets change from step to step.
    They are the same in every run of a test.

    Yields the budgets, by step and by request, of those that had a tree.
    """
    rng, chosen, clock = random.Random(seed), list[Nodes](), SimpleNamespace(now=0.0)
    clock.perf_counter = lambda: clock.now
    verification, drafting = (np.array(points).T for points in (costs.verification, costs.drafting))
    choose, ended, drafted = AdaptiveTrees._choose, AdaptiveTrees.end_verification, AdaptiveTrees.end_drafting

    def remember(self: AdaptiveTrees, rows: np.ndarray, num_drafts: np.ndarray, *sizes: int) -> Budget:
        budget = choose(self, rows, num_drafts, *sizes)
        has_tree = np.minimum(self.speculator.rows.num_nodes[rows].numpy(), num_drafts) > 0
        names = [request_name(self.runner.req_states, row) for row in rows[has_tree].tolist()]
        chosen.append(dict(zip(names, budget.num_nodes[has_tree].tolist(), strict=True)))
        return budget

    def end_verification(self: AdaptiveTrees, batch: Any, num_sampled: Tensor) -> None:
        clock.now += rng.uniform(1 / spread, spread) * float(np.interp(batch.num_tokens, *verification))
        ended(self, batch, num_sampled)

    def end_drafting(self: AdaptiveTrees, num_reqs: int) -> None:
        clock.now += rng.uniform(1 / spread, spread) * float(np.interp(num_reqs, *drafting))
        drafted(self, num_reqs)

    own = runner(llm)
    costs = replace(costs, beam_length=own.speculator.drafting.beam_length)
    with ExitStack() as stack:
        for owner, name, value in (
            # What `adapt_trees` sets is as before at the end.
            (own, "adaptive_verification", None),
            (own.speculator, "observer", None),
            (own.speculator, "survival", None),
            (own.speculator, "draft_token_confidence_probs", None),
            (adaptive_trees, "time", clock),
            (adaptive_trees, "measure_costs", lambda *_: costs),
            (AdaptiveTrees, "_choose", remember),
            (AdaptiveTrees, "end_verification", end_verification),
            (AdaptiveTrees, "end_drafting", end_drafting),
        ):
            stack.enter_context(patch.object(owner, name, value))
        adapt_trees(own)
        yield chosen
