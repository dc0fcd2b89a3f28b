# SPDX-License-Identifier: Apache-2.0
"""Budgets that no policy would choose, for engines whose trees adapt."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import numpy as np

from redrafter_vllm.adaptive.budget import Budget
from redrafter_vllm.adaptive.outlook import Outlook
from redrafter_vllm.adaptive.pause import DraftingPause
from redrafter_vllm.adaptive.survival import SurvivalEstimator
from redrafter_vllm.integration.worker.adaptive_trees import AdaptiveTrees


@contextmanager
def random_budgets(seed: int) -> Iterator[list[int]]:
    """Any budget for each request, none included, and every round drawn, with any number of beam steps.

    Yields the budgets, summed by step.
    """
    rng, chosen = random.Random(seed), list[int]()

    def choose(self: AdaptiveTrees, rows: np.ndarray, num_drafts: np.ndarray, *_: int) -> Budget:
        drawn = np.minimum(self.speculator.rows.num_nodes[rows].numpy(), num_drafts)
        style = rng.randrange(4)
        nodes = [rng.randint(0, count) if style == 3 else (0, count // 2, count)[style] for count in drawn.tolist()]
        chosen.append(sum(nodes))
        return Budget(np.array(nodes), 1.0, 1.0)

    with (
        patch.object(AdaptiveTrees, "_choose", choose),
        patch.object(DraftingPause, "is_paused", False),
        patch.object(Outlook, "skips", lambda *_: False),
        patch.object(Outlook, "draws", lambda outlook, _: rng.randint(1, outlook._costs.beam_length)),
        # Scripted trees are not those of the beams that were ranked.
        patch.object(SurvivalEstimator, "store", lambda *_: None),
    ):
        yield chosen
