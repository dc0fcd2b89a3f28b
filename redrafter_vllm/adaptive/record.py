# SPDX-License-Identifier: Apache-2.0
"""What adaptive trees chose and what came of it, for the metrics and for a line of the log."""

from dataclasses import dataclass
from typing import NamedTuple


class AdaptiveCounts(NamedTuple):
    """Sums over steps, whole numbers, as they travel to the front end's counters."""

    skipped_rounds: int = 0
    expected_thousandths: int = 0  # accepted draft tokens that were expected, times 1000
    plain_us: int = 0  # estimated duration of these steps' tokens without drafts
    taken_us: int = 0  # of the steps as they were, estimated in the same way
    passed_us: int = 0  # by the clock while these steps ran; 0 on a GPU


NO_COUNTS = AdaptiveCounts()


@dataclass
class Record:
    """Sums over steps that only decoded."""

    steps: int = 0
    skipped_rounds: int = 0
    nodes: int = 0
    expected: float = 0.0  # accepted draft tokens
    accepted: float | None = 0.0  # None where the step's result is still on the device
    seconds: float = 0.0  # estimated from steps and rounds of these sizes, drafting included
    plain_seconds: float = 0.0  # estimated in the same way, for the same tokens without drafts
    # By the clock, from the end of the target's step before to the end of this one; 0 where the host does not know.
    passed_seconds: float = 0.0

    def add(self, step: "Record") -> None:
        for name, value in vars(step).items():
            known = getattr(self, name)
            setattr(self, name, None if value is None or known is None else known + value)

    def take_counts(self) -> AdaptiveCounts:
        """The whole part of what has been added since the last call; fractions are kept for the next one."""
        times = (int(1e6 * seconds) for seconds in (self.plain_seconds, self.seconds, self.passed_seconds))
        counts = AdaptiveCounts(self.skipped_rounds, int(1e3 * self.expected), *times)
        self.skipped_rounds = 0
        self.expected -= 1e-3 * counts.expected_thousandths
        self.plain_seconds -= 1e-6 * counts.plain_us
        self.seconds -= 1e-6 * counts.taken_us
        self.passed_seconds -= 1e-6 * counts.passed_us
        return counts

    def __str__(self) -> str:
        if self.steps == 0 or self.seconds == 0:
            return "no step that only decoded"
        accepted = "" if self.accepted is None else f"{self.accepted / self.steps:.2f} accepted, "
        passed = self.passed_seconds
        by_the_clock = f", {self.plain_seconds / passed:.2f} times by the clock" if passed else ""
        return (
            f"{self.steps} steps, {self.skipped_rounds} of them without drafts, as drafting paused; "
            f"{self.nodes / self.steps:.1f} nodes per step, {accepted}"
            f"{self.expected / self.steps:.2f} expected to be; {self.plain_seconds / self.seconds:.2f} times the "
            f"estimated speed without drafts{by_the_clock}"
        )
