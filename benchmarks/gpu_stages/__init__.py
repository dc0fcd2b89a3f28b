# SPDX-License-Identifier: Apache-2.0
"""What `benchmarks.gpu_check` runs, one module a stage: `run(device, scratch)` gives the stage's `Outcome`."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """Whether the stage shows what it must, in one line, and its figures."""

    passed: bool
    summary: str
    figures: dict[str, Any] = field(default_factory=dict)
