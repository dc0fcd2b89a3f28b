# SPDX-License-Identifier: Apache-2.0
"""SIGINT and SIGTERM as wishes to end in good order: after the step, with a checkpoint."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread
from types import FrameType, TracebackType
from typing import Any, Self

EXIT_CODE = 130  # what a shell reports for a command that Ctrl-C has ended
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """While entered, the first signal asks for the end, and a second one ends the process at once.

    The first raises KeyboardInterrupt where it arrives; inside `postponed` it only sets `requested`, for the code there
    to heed. One that is never entered, or in another thread than the main one, leaves signals alone.
    """

    def __init__(self) -> None:
        self.requested = False
        self._postponed = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if current_thread() is main_thread():
            self._before = {number: signal.getsignal(number) for number in SIGNALS}
        self._install()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _install(self) -> None:
        for number in self._before:
            signal.signal(number, signal.SIG_DFL if self.requested else self._receive)

    @contextmanager
    def postponed(self) -> Iterator[None]:
        """Here `requested` is looked at often enough."""
        self._postponed = True
        try:
            yield
        finally:
            self._postponed = False

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self._install()
        if not self._postponed:
            raise KeyboardInterrupt
