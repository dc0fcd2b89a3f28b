# SPDX-License-Identifier: Apache-2.0
"""jsonargparse's parser, which ends every mistake in the keys with a short message and exit code 2."""

from typing import Any, NoReturn

from jsonargparse import ArgumentParser, Namespace

from redrafter_vllm.utils.messages import shortened

MAX_LINES = 20  # of a message
LINE_WIDTH = 300


class KeysParser(ArgumentParser):
    """Exits with code 2 and a message, without the long usage text, for any invalid content of a file of keys."""

    def parse_args(self, *args: Any, **options: Any) -> Namespace:  # type: ignore[override]
        try:
            return super().parse_args(*args, **options)
        except (OSError, UnicodeDecodeError) as problem:
            self.error(f"the --config file cannot be read as UTF-8 text ({problem})")
        except RecursionError:
            self.error("the --config file nests too deeply")
        except Exception as problem:
            # For keys and values of unexpected types the library raises many kinds of errors.
            self.error(f"the keys cannot be read ({type(problem).__name__}: {problem})")

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Exits with `message`; values in it that would fill the screen or control the terminal are cut or escaped."""
        lines = [shortened(line, LINE_WIDTH) for line in message.splitlines()]
        text = "\n".join(lines[:MAX_LINES])
        if not self.exit_on_error:  # a parser that the library makes for a part of the keys
            super().error(text, ex)
        self.exit(2, f"error: {text} (see --help)\n")
