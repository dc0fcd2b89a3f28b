# SPDX-License-Identifier: Apache-2.0
"""When drafting rounds stop because they do not pay, and when they are tried again."""

import math

import numpy as np

TRIAL = 8  # steps of drafting before it is judged
MEMORY = 128  # steps that a judgement looks back on
SPREAD = 0.6  # of a request's tokens in a step: about their standard deviation over their mean
FIRST_PAUSE = 16  # steps
LONGEST_PAUSE = 512


class DraftingPause:
    """Compares the tokens per second of recent steps with those of steps without drafts.

    Where drafting loses, it pauses, twice as long each time. After a pause it gets a trial, and one that it passes for
    long enough makes the next pause short again.
    """

    def __init__(self) -> None:
        self._pause = FIRST_PAUSE
        self._left = 0  # steps of the current pause
        self._steps = 0  # since drafting began
        self._recent = np.zeros(5)  # the arguments of `judge` and 1, summed, the last ones weighing most

    @property
    def is_paused(self) -> bool:
        """Whether the next round is skipped."""
        return self._left > 0

    def skip(self) -> None:
        """A step without a round has passed."""
        self._left -= 1

    def judge(self, tokens: float, seconds: float, plain_tokens: float, plain_seconds: float) -> None:
        """A step has emitted `tokens`; by its size it takes `seconds`, drafting included.

        One without drafts would have emitted `plain_tokens`, one for each request, in `plain_seconds`. Starts a pause
        where the recent steps together lose.
        """
        self._recent = (1 - 1 / MEMORY) * self._recent + (tokens, seconds, plain_tokens, plain_seconds, 1)
        self._steps += 1
        if self._steps < TRIAL:
            return
        tokens, seconds, plain_tokens, plain_seconds, steps = self._recent
        # The mean of so few steps must lose by more than chance explains, by about one standard deviation; the
        # requests of a step accept independently of each other.
        chance = SPREAD / math.sqrt(min(self._steps, 2 * MEMORY) * plain_tokens / steps)
        if tokens * plain_seconds < (1 - chance) * plain_tokens * seconds:
            self._left = self._pause
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
            self._steps = 0
            self._recent = np.zeros(5)
        elif self._steps >= 4 * TRIAL:
            self._pause = FIRST_PAUSE
