# SPDX-License-Identifier: Apache-2.0
"""What drafting is expected to bring with a given number of requests, by the trees drawn lately."""

from collections import defaultdict
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from redrafter_vllm.adaptive.budget import saved_steps
from redrafter_vllm.adaptive.costs import StepCosts
from redrafter_vllm.adaptive.pause import TRIAL

KEPT = 128  # trees that are remembered, and as many of whole rounds
RECENT = 32  # rounds whose trees count, or fewer, with many requests, as no more trees are remembered
MEMORY = 128  # steps whose promises are compared with what came of them
VALID = 32  # steps before it is computed again, or fewer, once there are twice as many trees
PRIOR = 8.0  # tokens that count as promised and accepted before any step
# Steps without a round; then some are drawn for trial, as texts change, and the next skip is twice as long.
FIRST_SKIP = 32
LONGEST_SKIP = 512
WORTHWHILE = 1.05  # the gain from which on rounds are drawn: it is estimated, and a batch ends with its slowest request
WHOLE_ROUND = 16  # one round out of so many has all beam steps, as only its trees tell what these would bring


class _Trees:
    """The last `KEPT` trees of some rounds."""

    def __init__(self, max_nodes: int, whole_round: int) -> None:
        self.number = 0  # ever added
        self.max_nodes = max_nodes
        self._whole_round = whole_round  # beam steps
        self._survival = np.zeros((KEPT, max_nodes))
        self._beam_steps = np.zeros((KEPT, max_nodes), dtype=np.int64)
        self._round = np.zeros(KEPT, dtype=np.int64)  # beam steps of the round that drew each tree

    def add(self, survival: np.ndarray, beam_steps: np.ndarray, of_round: int) -> None:
        """Add what a round of `of_round` beam steps has drawn; the other arguments as in `Outlook.remember`."""
        survival, beam_steps = survival[-KEPT:], beam_steps[-KEPT:]
        places = (self.number + np.arange(len(survival))) % KEPT
        self._survival[places], self._beam_steps[places], self._round[places] = survival, beam_steps, of_round
        self.number += len(survival)

    def drawn_by(self, beam_steps: int, newest: int) -> np.ndarray:
        """What rounds of so many beam steps have drawn of the newest trees, or would have drawn of whole rounds' ones.

        [trees, N] survival of the nodes, 0 where there is none.
        """
        number = min(self.number, newest, KEPT)
        places = (self.number - number + np.arange(number)) % KEPT
        of_round = self._round[places]
        places = places[(of_round == beam_steps) | (of_round == self._whole_round)]
        return np.where(self._beam_steps[places] <= beam_steps, self._survival[places], 0.0)


class Expectation(NamedTuple):
    """What the rounds of the best number of beam steps bring."""

    gain: float  # a request's tokens per second with drafts over those without
    beam_steps: int


@dataclass
class _Known:
    """What was expected when there were `num_trees`."""

    expectation: Expectation
    num_trees: int
    steps_left: int = VALID


@dataclass
class _Skip:
    """Steps without a round, at one range of loads."""

    length: int = FIRST_SKIP
    done: int = 0
    to_try: int = 0  # rounds of a trial that are left


class Outlook:
    """Remembers the estimated survival of recent trees, and what a batch of such trees would have brought.

    So a loss at one load says nothing about another, and a load at which drafting cannot pay is seen without a trial.
    Among many requests the time of a round counts for more than the depth of its trees, so that shorter rounds may gain
    where whole ones lose. Which ones are best, the trees of whole rounds tell; whether these gain, the recent trees of
    all rounds do. Where rounds are short few are whole: of one request the last 32 go back 500 steps, to other text.
    """

    def __init__(self, costs: StepCosts, max_nodes: int) -> None:
        self._costs = costs
        self._recent, self._whole = (_Trees(max_nodes, costs.beam_length) for _ in range(2))
        self._promised = self._accepted = 0.0  # tokens beyond one for each request, the last steps weighing most
        self._expected: dict[int, _Known] = {}  # by requests
        self._skips: defaultdict[int, _Skip] = defaultdict(_Skip)  # by load: loads within a factor of 2 share one
        self._is_trial = False  # the round that may begin now
        self._drawn = 0  # rounds, some of them short

    def remember(self, survival: np.ndarray, beam_steps: np.ndarray) -> None:
        """Trees of a step, drawn by a whole round.

        Args:
            survival: [B, N] probability that each node is accepted, falling along each row, 0 beyond the last.
            beam_steps: [B, N] that each node took: its depth, or 0 where it is a copy of the text.
        """
        for trees in (self._recent, self._whole):
            trees.add(survival, beam_steps, self._costs.beam_length)

    def remember_short(self, survival: np.ndarray, beam_steps: int) -> None:
        """Trees of a step, drawn by a round of so many beam steps, all of whose nodes it has; see `remember`."""
        self._recent.add(survival, np.zeros_like(survival, dtype=np.int64), beam_steps)

    @property
    def num_trees(self) -> int:
        """Trees ever remembered."""
        return self._recent.number

    def grade(self, promised: float, accepted: float) -> None:
        """A step has verified nodes of which `promised` were expected to be accepted, and `accepted` were."""
        self._promised = (1 - 1 / MEMORY) * self._promised + promised
        self._accepted = (1 - 1 / MEMORY) * self._accepted + accepted

    @property
    def trust(self) -> float:
        """What an estimated survival is multiplied by, at most 1.

        A step verifies the nodes that look best, and so more of those whose survival is overestimated than of others.
        One step says little, so some tokens that were promised and accepted are added to both sums.
        """
        return min(1.0, (self._accepted + PRIOR) / (self._promised + PRIOR))

    def skips(self, num_requests: int) -> bool:
        """Whether no round is drawn after a step of so many requests, as a loss is expected."""
        skip = self._skips[num_requests.bit_length()]
        self._is_trial = skip.to_try > 0
        if self._is_trial:
            skip.to_try -= 1
            return False
        if self.gain(num_requests) >= WORTHWHILE:
            skip.length = FIRST_SKIP
            return False
        skip.done += 1
        if skip.done == skip.length:
            # Each round of a trial shows a tree of every request.
            skip.to_try, skip.done = -(-TRIAL // num_requests), 0
            skip.length = min(2 * skip.length, LONGEST_SKIP)
        return True

    def draws(self, num_requests: int) -> int:
        """The beam steps of the round that is drawn now after a step of so many requests."""
        self._drawn += 1
        is_whole = self._is_trial or self._drawn % WHOLE_ROUND == 0
        return self._costs.beam_length if is_whole else self.beam_steps(num_requests)

    def gain(self, num_requests: int) -> float:
        """A request's tokens per second with drafts over those without, among so many; WORTHWHILE if unknown."""
        known = self._expected.get(num_requests)
        # What few trees say does not hold for long; but as long as none comes, there is nothing new.
        if known is None or known.steps_left == 0 or self.num_trees >= max(2 * known.num_trees, 1):
            known = self._expected[num_requests] = _Known(self._expect(num_requests), self.num_trees)
        known.steps_left -= 1
        return known.expectation.gain

    def beam_steps(self, num_requests: int) -> int:
        """The number of beam steps that was best for so many requests when `gain` was last computed."""
        known = self._expected.get(num_requests)
        return self._costs.beam_length if known is None else known.expectation.beam_steps

    def _expect(self, num_requests: int) -> Expectation:
        costs, length = self._costs, self._costs.beam_length
        if self._whole.number == 0:
            return Expectation(WORTHWHILE, length)
        most = num_requests + num_requests * self._whole.max_nodes
        target = costs.verification(num_requests, most, num_requests)
        plain = costs.plain(num_requests) + costs.between(num_requests, is_drawn=False)
        seconds = target + costs.between(num_requests, is_drawn=True)

        def gain(survival: np.ndarray, steps: int) -> float:
            saved = saved_steps(self.trust * survival)
            # Batches of successive trees, from the beginning again where there are not enough.
            batches = np.arange(-(-len(saved) // num_requests) * num_requests).reshape(-1, num_requests) % len(saved)
            round_seconds = self._round(num_requests, steps)
            return plain * _speed(saved[batches].reshape(len(batches), -1), num_requests, seconds + round_seconds)

        choices = range(costs.fewest_beam_steps, length + 1)
        newest = RECENT * num_requests
        best = max(choices, key=lambda steps: gain(self._whole.drawn_by(steps, newest), steps))
        recent = self._recent.drawn_by(best, newest)
        # Where the best rounds are other ones than before, few recent trees tell of them.
        return Expectation(gain(recent if len(recent) >= TRIAL else self._whole.drawn_by(best, newest), best), best)

    def _round(self, num_requests: int, beam_steps: int) -> float:
        """Seconds of a round of so many beam steps, on average with those that are whole."""
        short, whole = self._costs.drafting(num_requests, beam_steps), self._costs.drafting(num_requests)
        return short + (whole - short) / WHOLE_ROUND


def _speed(saved: np.ndarray, num_requests: int, seconds: np.ndarray) -> float:
    """Tokens per second of a request in batches, each with the nodes that pay.

    What a step brings is the harmonic mean of its requests' tokens, as `budget` minimises the mean time per token.

    Args:
        saved: [batches, M] by all nodes of each batch; see `budget.saved_steps`.
        num_requests: Of a batch; each emits one token without drafts.
        seconds: [1 + M] of a step with 0 to M nodes.
    """
    ranked = -np.sort(-saved, axis=1)
    tokens = num_requests / (num_requests - np.pad(ranked.cumsum(1), ((0, 0), (1, 0))))
    best = np.argmax(tokens / seconds, axis=1)
    return float(np.take_along_axis(tokens, best[:, None], 1).sum() / seconds[best].sum())
