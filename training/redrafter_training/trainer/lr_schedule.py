# SPDX-License-Identifier: Apache-2.0
"""How long a training lasts and how its learning rate moves."""

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
    """One step about to be made: its number from 0, the budget and seconds used so far, the bar for figures."""

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
    """Count steps from `first` under a progress bar until the budget is used.

    Args:
        seconds: wall clock that the steps before `first` took.
        agree: turns a process's own clock into the one that all processes go by.
    """
    start = time.monotonic() - seconds
    clocked = math.isfinite(budget.max_seconds)
    with tqdm(
        total=budget.max_steps, desc=description, unit="step", disable=quiet, mininterval=2.0, initial=first
    ) as bar:
        for step in range(first, budget.max_steps):
            elapsed = time.monotonic() - start
            used = budget.used(step, agree(elapsed) if clocked else 0.0)
            if used >= 1.0:
                break
            yield Tick(step, used, elapsed, bar)
            bar.update()
