# SPDX-License-Identifier: Apache-2.0
"""An error of ours that only shows itself in the engine's processes becomes the error of the call that started them.

vLLM's front end learns that a process has ended, not why, and ends with "See root cause above". A process that meets
an error of this package while it starts leaves it in a file that the front end has named in the environment.
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
    """In the front end, before it starts an engine: name the file, which nobody creates unless there is an error."""
    name = f"redrafter-{os.getpid()}-{secrets.token_hex(8)}.json"
    os.environ[_VARIABLE] = str(Path(tempfile.gettempdir(), name))


def tells_the_front(function: Callable[P, T]) -> Callable[P, T]:
    """Decorate what an engine's process calls while it starts."""

    @functools.wraps(function)
    def telling(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            if is_ours(error):
                _leave(error)
            raise

    return telling


def raise_what_was_told(original: Callable) -> Callable:
    """Wrap `wait_for_engine_startup`, which raises when a process has ended instead of getting ready."""

    def wait_for_engine_startup(*args: Any, **kwargs: Any) -> Any:
        try:
            return original(*args, **kwargs)
        except RuntimeError as error:
            told = _found()
            if told is None:
                raise
            raise told from error

    return wait_for_engine_startup


def is_ours(error: BaseException) -> bool:
    """Whether an error is of a type of this package's, whose message is a sentence for the user."""
    return type(error).__module__.partition(".")[0] == _PACKAGE


def _leave(error: Exception) -> None:
    path = os.environ.get(_VARIABLE)
    # In the front end's own process the error itself arrives.
    if path is None or Path(path).name.startswith(f"redrafter-{os.getpid()}-"):
        return
    kind = type(error)
    try:
        # The first error is the cause; other ranks meet the same one.
        with open(path, "x", encoding="utf-8") as file:
            json.dump([kind.__module__, kind.__name__, str(error)], file)
    except OSError:
        return


def _found() -> Exception | None:
    path = Path(os.environ.get(_VARIABLE, ""))
    try:
        module, name, message = json.loads(path.read_text(encoding="utf-8"))
        path.unlink()
    except (OSError, ValueError):
        return None
    if module.partition(".")[0] != _PACKAGE:  # nothing else is ever written there
        return None
    return getattr(import_module(module), name)(message)
