# SPDX-License-Identifier: Apache-2.0
"""How a command ends: with an exit code, with a message for a documented error, or after SIGINT or SIGTERM."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread
from types import FrameType, TracebackType
from typing import Any, Self

from redrafter_vllm.utils.messages import sentence

EXIT_CODE = 130  # what a shell reports for a command that Ctrl-C has ended
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class WorkersFailedError(RuntimeError):
    """The workers failed more often than allowed; stored checkpoints and shards are intact."""


class TrainingStoppedError(RuntimeError):
    """The training was interrupted; a checkpoint of its last step is stored."""


class Interruption:
    """Context manager for SIGINT and SIGTERM: the first one interrupts, the second one ends the process at once.

    The first raises KeyboardInterrupt where it arrives; inside `postponed` it only sets `requested`, which the code
    there checks. An instance that is never entered, or is entered outside the main thread, does not change signals.
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
        """While entered, a signal only sets `requested`."""
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


def run_command(body: Callable[[Interruption], int], interrupted: Callable[[], str]) -> int:
    """Runs `body` and returns its exit code; documented errors are printed to stderr.

    Args:
        interrupted: the message after SIGINT or SIGTERM: what is kept, and how to continue.
    """
    with Interruption() as interruption:
        try:
            return body(interruption)
        except (KeyboardInterrupt, TrainingStoppedError):
            print(interrupted(), file=sys.stderr)
            return EXIT_CODE
        except OSError as problem:
            print(sentence(problem), file=sys.stderr)
        except (FloatingPointError, ValueError, WorkersFailedError) as problem:
            print(problem, file=sys.stderr)
        return 1
