# SPDX-License-Identifier: Apache-2.0
"""Stages of `benchmarks.gpu_check`, one module each: `run(call)` returns the stage's `Outcome`."""

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.record import store


@dataclass(frozen=True)
class Outcome:
    """Result of a stage: whether it shows what it must, a summary, and figures."""

    passed: bool
    summary: str
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Call:
    """Arguments of a stage."""

    device: str
    scratch: Path  # the stage's folder
    deadline: float  # `time.monotonic` at which the stage is killed

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()

    def keep(self, figures: dict[str, Any]) -> None:
        """Store the figures so far, for the case that the stage is stopped."""
        store(outcome_file(self.scratch), asdict(Outcome(False, "stopped before its end", figures)))


def outcome_file(scratch: Path) -> Path:
    """The file of a stage's outcome, beside its folder."""
    return scratch.with_name(f"{scratch.name}.outcome")
