# SPDX-License-Identifier: Apache-2.0
"""What drafting is expected to bring with a given number of requests, by the trees drawn lately."""

import numpy as np

from redrafter_vllm.adaptive.budget import choose_budget
from redrafter_vllm.adaptive.costs import StepCosts
from redrafter_vllm.adaptive.pause import TRIAL

KEPT = 64  # trees that are remembered
SAMPLED = 32  # requests, at least, for which an expectation is computed
VALID = 32  # steps before it is computed again
LONGEST_SKIP = 512  # steps without a round; then some are drawn for trial, as texts change


class Outlook:
    """Remembers the estimated survival of recent trees, and what a batch of such trees would have brought.

    So a loss at one load says nothing about another, and a load at which drafting cannot pay is seen without a trial.
    """

    def __init__(self, costs: StepCosts, max_nodes: int) -> None:
        self._costs = costs
        self._trees = np.zeros((KEPT, max_nodes))
        self._num_trees = 0  # ever remembered
        self._gains: dict[int, tuple[float, int]] = {}  # by requests: the gain, and the steps left before it is too old
        self._skipped = self._to_try = 0  # rounds

    def remember(self, survival: np.ndarray) -> None:
        """Trees of a step: [B, N] probability that each node is accepted, falling along each row, 0 beyond the last."""
        for tree in survival:
            self._trees[self._num_trees % KEPT] = tree
            self._num_trees += 1

    def skips(self, num_requests: int) -> bool:
        """Whether no round is drawn after a step of so many requests, as a loss is expected."""
        if self._to_try > 0:
            self._to_try -= 1
            return False
        if self.gain(num_requests) >= 1:
            return False
        self._skipped += 1
        if self._skipped == LONGEST_SKIP:
            self._skipped, self._to_try = 0, TRIAL
        return True

    def gain(self, num_requests: int) -> float:
        """Tokens per second with drafts over those without, in a step of so many requests; 1 where none is known."""
        gain, steps_left = self._gains.get(num_requests, (0.0, 0))
        if steps_left == 0:
            gain, steps_left = self._expected(num_requests), VALID
        self._gains[num_requests] = gain, steps_left - 1
        return gain

    def _expected(self, num_requests: int) -> float:
        known = self._trees[: min(self._num_trees, KEPT)]
        if len(known) == 0:
            return 1.0
        most = num_requests * (1 + known.shape[1])
        seconds = self._costs.step(num_requests, most, num_requests)
        with_drafts = seconds + self._costs.drafting(num_requests)
        tokens = duration = 0.0
        for first in range(0, max(SAMPLED, num_requests), num_requests):
            # Batches of successive trees, from the beginning again where there are not enough.
            batch = known[np.arange(first, first + num_requests) % len(known)]
            budget = choose_budget(batch, num_requests, with_drafts)
            tokens, duration = tokens + budget.tokens, duration + budget.seconds
        return tokens / duration * seconds[0] / num_requests
