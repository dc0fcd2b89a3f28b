# SPDX-License-Identifier: Apache-2.0
"""A command line that ends with an error of ours prints its message, not the traceback through vLLM."""

import logging
import sys
from types import TracebackType

from redrafter_vllm.integration.start_errors import is_own_error


def end_in_one_sentence() -> None:
    """Let an uncaught error of this package end the process with its message as the last line, and exit code 1.

    For processes that have parsed vLLM's command line; a program that builds an engine gets the exception itself. With
    `VLLM_LOGGING_LEVEL=DEBUG` the traceback is printed before the message. Idempotent.
    """
    if sys.excepthook is not _hook:
        global _previous
        _previous = sys.excepthook
        sys.excepthook = _hook


_previous = sys.excepthook


def _hook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    ours = is_own_error(error)
    if not ours or logging.getLogger("vllm").isEnabledFor(logging.DEBUG):
        _previous(kind, error, traceback)
    if ours:
        sys.stdout.flush()
        print(f"Error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
