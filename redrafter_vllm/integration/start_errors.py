# SPDX-License-Identifier: Apache-2.0
"""An error of ours in an engine's process that starts becomes the error of the call that started the engine.

vLLM's front end learns that a process has ended, not why, and ends with "See root cause above". A process in which this
package raises an error while it starts writes it to a file whose name the front end has put into the environment.
"""

import functools
import json
import os
import secrets
import tempfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

_VARIABLE = "REDRAFTER_START_ERROR"
_PACKAGE = __name__.partition(".")[0]

P = ParamSpec("P")
T = TypeVar("T")


def expect_start_errors() -> None:
    """In the front end, before it starts an engine: name the file. It is created only when there is an error."""
    name = f"redrafter-{os.getpid()}-{secrets.token_hex(8)}.json"
    os.environ[_VARIABLE] = str(Path(tempfile.gettempdir(), name))


def report_start_errors(function: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function that an engine's process calls while it starts: its errors are written to the file."""

    @functools.wraps(function)
    def reporting(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            if is_own_error(error):
                _write(error)
            raise

    return reporting


def raise_start_error(original: Callable) -> Callable:
    """Wrap `wait_for_engine_startup`, which raises when a process has ended: raise the error that it has written."""

    def wait_for_engine_startup(*args: Any, **kwargs: Any) -> Any:
        try:
            return original(*args, **kwargs)
        except RuntimeError as error:
            cause = _read()
            if cause is None:
                raise
            raise cause from error

    return wait_for_engine_startup


def is_own_error(error: BaseException) -> bool:
    """Whether an error is of a type of this package, whose message is a sentence for the user."""
    return type(error).__module__.partition(".")[0] == _PACKAGE


def _write(error: Exception) -> None:
    path = os.environ.get(_VARIABLE)
    # In the front end's own process the error itself arrives.
    if path is None or Path(path).name.startswith(f"redrafter-{os.getpid()}-"):
        return
    kind = type(error)
    try:
        # The first error is the cause; other ranks raise the same one.
        with open(path, "x", encoding="utf-8") as file:
            json.dump([kind.__module__, kind.__name__, str(error)], file)
    except OSError:
        return


def _read() -> Exception | None:
    path = Path(os.environ.get(_VARIABLE, ""))
    try:
        module, name, message = json.loads(path.read_text(encoding="utf-8"))
        path.unlink()
    except (OSError, ValueError):
        return None
    if module.partition(".")[0] != _PACKAGE:  # not written by this package
        return None
    return getattr(import_module(module), name)(message)
