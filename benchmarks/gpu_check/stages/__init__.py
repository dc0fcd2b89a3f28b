# SPDX-License-Identifier: Apache-2.0
"""What `benchmarks.gpu_check` runs, one module a stage: `run(call)` gives the stage's `Outcome`."""

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.record import store


@dataclass(frozen=True)
class Outcome:
    """Whether the stage shows what it must, in one line, and its figures."""

    passed: bool
    summary: str
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Call:
    """What a stage is given: a device, a folder of its own, and when it will be killed, by `time.monotonic`."""

    device: str
    scratch: Path
    deadline: float

    @property
    def left(self) -> float:
        return self.deadline - time.monotonic()

    def keep(self, figures: dict[str, Any]) -> None:
        """What has been found so far, should the stage not come to its end."""
        store(outcome_file(self.scratch), asdict(Outcome(False, "it did not come to its end", figures)))


def outcome_file(scratch: Path) -> Path:
    """Beside the stage's folder."""
    return scratch.with_name(f"{scratch.name}.outcome")
