# SPDX-License-Identifier: Apache-2.0
"""How fast steps are made."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Pace:
    """Tokens per second of the steps since the last question, without evaluations and checkpoints between them."""

    def __init__(self) -> None:
        self._tokens, self._seconds = 0, 0.0

    @contextmanager
    def step(self) -> Iterator[None]:
        """The time of a step, data included."""
        start = time.monotonic()
        yield
        self._seconds += time.monotonic() - start

    def add(self, tokens: int) -> None:
        self._tokens += tokens

    def rate(self) -> float:
        """Tokens per second; counting starts anew."""
        rate = self._tokens / self._seconds if self._seconds else 0.0
        self._tokens, self._seconds = 0, 0.0
        return rate
