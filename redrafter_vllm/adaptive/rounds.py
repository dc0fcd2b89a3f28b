# SPDX-License-Identifier: Apache-2.0
"""Whether a drafting round follows a step, and of how many beam steps; the same on every device."""

from collections import defaultdict

from redrafter_vllm.adaptive.costs import StepCosts
from redrafter_vllm.adaptive.outlook import Outlook
from redrafter_vllm.adaptive.pause import DraftingPause

# Steps between two runs without rounds, with which all others are compared, and the length of a run. A step after a
# round is none of these even if it verifies nothing: it finds the drafter's weights in the caches.
PLAIN_INTERVAL, PLAIN_RUN = 256, 3


class RoundChoice:
    """Decides by what recent trees promise at a load, by what recent steps have brought, and by what both cost."""

    def __init__(self, costs: StepCosts, max_nodes: int) -> None:
        self.outlook = Outlook(costs, max_nodes)
        # By load, as a loss among many requests says nothing about few: loads within a factor of 2 share one.
        self._pauses: defaultdict[int, DraftingPause] = defaultdict(DraftingPause)
        self._until_plain, self._plain_left = PLAIN_INTERVAL, 0  # steps to a run without rounds, and of such a run
        self._measured_loads: set[int] = set()  # loads within factors of 2 that have had such a run
        # Of the round chosen last: whether trees are drawn, or were wanted and would not pay; and its beam steps.
        self.is_drawn = self.is_paused = False
        self.beam_steps = costs.beam_length

    def choose(self, num_reqs: int, *, is_wanted: bool) -> bool:
        """Whether a round is drawn after a step of so many requests, some of which want one or none does."""
        is_wanted = is_wanted and not self._measures_plain(num_reqs)
        self.is_paused = is_wanted and self._is_better_without(num_reqs)
        self.is_drawn = is_wanted and not self.is_paused
        if self.is_drawn:
            self.beam_steps = self.outlook.draws(num_reqs)
        return self.is_drawn

    def judge(self, num_reqs: int, tokens: float, seconds: float, plain_tokens: float, plain_seconds: float) -> None:
        """A step of so many requests after a round has brought this; see `DraftingPause.judge`."""
        self._pauses[num_reqs.bit_length()].judge(tokens, seconds, plain_tokens, plain_seconds)

    def _measures_plain(self, num_reqs: int) -> bool:
        """Whether no round is drawn now, so that the next step shows how long one takes without."""
        self._until_plain -= 1
        load = num_reqs.bit_length()
        if self._until_plain <= 0 or load not in self._measured_loads:
            self._measured_loads.add(load)
            self._until_plain, self._plain_left = PLAIN_INTERVAL, PLAIN_RUN
        if self._plain_left == 0:
            return False
        self._plain_left -= 1
        return True

    def _is_better_without(self, num_reqs: int) -> bool:
        pause = self._pauses[num_reqs.bit_length()]
        if pause.is_paused:
            pause.skip()
            return True
        return self.outlook.skips(num_reqs)
