# SPDX-License-Identifier: Apache-2.0
"""The steps of a training within its budget, and the learning rate."""

import math
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass

from tqdm import tqdm

from redrafter_training.config.recipe import Budget


def learning_rate_scale(used: float, warmup: float, floor: float = 0.02) -> float:
    """Linear warm-up over the first `warmup` of the budget, then a cosine from 1 down to `floor`."""
    if used < warmup:
        return max(used / warmup, 1e-3)
    phase = (used - warmup) / (1.0 - warmup)
    return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * phase))


@dataclass(frozen=True)
class Tick:
    """One step to make: its number from 0, the fraction of the budget and the seconds used so far, the progress bar."""

    step: int
    used: float
    seconds: float
    bar: tqdm


def steps(
    budget: Budget,
    description: str,
    *,
    quiet: bool = False,
    first: int = 0,
    seconds: float = 0.0,
    agree: Callable[[float], float] = float,
) -> Generator[Tick, None, None]:
    """Counts steps from `first` with a progress bar until the budget is used.

    Args:
        seconds: wall clock of the steps before `first`.
        agree: maps a process's elapsed seconds to a value that is equal in all processes.
    """
    start = time.monotonic() - seconds
    clocked = math.isfinite(budget.max_seconds)
    with tqdm(total=budget.steps, desc=description, unit="step", disable=quiet, mininterval=2.0, initial=first) as bar:
        for step in range(first, budget.steps):
            elapsed = time.monotonic() - start
            used = budget.used(step, agree(elapsed) if clocked else 0.0)
            if used >= 1.0:
                break
            yield Tick(step, used, elapsed, bar)
            bar.update()
