# SPDX-License-Identifier: Apache-2.0
"""jsonargparse's parser, with its last tracebacks turned into messages, and messages that fit a terminal."""

from typing import Any, NoReturn

from jsonargparse import ArgumentParser, Namespace

from redrafter_vllm.utils.messages import shortened

MAX_LINES = 20  # of a message
LINE_WIDTH = 300


class KeysParser(ArgumentParser):
    """Exits with 2 and a message whatever stands in a file of keys."""

    def parse_args(self, *args: Any, **options: Any) -> Namespace:  # type: ignore[override]
        """
        Raises:
            OSError, UnicodeDecodeError, RecursionError: of reading the file, which the caller can name.
        """
        try:
            return super().parse_args(*args, **options)
        except (OSError, UnicodeDecodeError, RecursionError):
            raise
        except Exception as problem:
            # Keys and values of types that the library did not think of leave it in a dozen ways.
            self.error(f"the keys cannot be read ({type(problem).__name__}: {problem})")

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Exits with `message`, without the values in it that would fill the screen or control it."""
        lines = [shortened(line, LINE_WIDTH) for line in message.splitlines()]
        super().error("\n".join(lines[:MAX_LINES]), ex)
