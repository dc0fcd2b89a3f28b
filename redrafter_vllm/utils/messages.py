# SPDX-License-Identifier: Apache-2.0
"""Parts of error messages: values on one line, suggestions for misspelt names, what is at a path."""

import difflib
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from reprlib import Repr
from typing import Any

MAX_LINE = 1000
MAX_VALUE = 80
_READABLE_BITS = 128


class _Short(Repr):
    """Cuts long and deep values; an integer of more than 128 bits is described by its size."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 3
        self.maxstring = self.maxother = MAX_VALUE

    def repr_int(self, x: int, level: int) -> str:
        # Python refuses to write integers of more than a few thousand digits.
        return repr(x) if x.bit_length() <= _READABLE_BITS else f"an integer of {x.bit_length()} bits"


_SHORT = _Short()


def shown(value: object) -> str:
    """`repr(value)`, cut where it is long."""
    text = one_line(_SHORT.repr(value))
    return text if len(text) <= 3 * MAX_VALUE else f"{text[: 3 * MAX_VALUE]}..."


def listed(names: Sequence[str], max_names: int = 4) -> str:
    """The first names, as they are unless they are long or unprintable, and the number of the others."""
    first = [name if name.isprintable() and len(name) <= MAX_VALUE else shown(name) for name in names[:max_names]]
    return ", ".join(first) + (f" and {len(names) - max_names} more" if len(names) > max_names else "")


def one_line(text: str) -> str:
    """`text` with what cannot be printed escaped, and without its middle where it is very long."""
    text = _without_middle(text, 2 * MAX_LINE)
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return _without_middle(text, MAX_LINE)


def shortened(text: str, width: int = 100) -> str:
    """The beginning of `text`: at most `width` characters, all printable."""
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[:width])
    return shown if len(text) <= width and len(shown) <= width else shown[: width - 1] + "…"


def did_you_mean(name: Any, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)` to put after the name in a sentence; empty where no known name is similar."""
    spellings = {_letters(one): one for one in known}
    found = difflib.get_close_matches(_letters(str(name)[:MAX_VALUE]), spellings, n=1, cutoff=0.75)
    return f" (did you mean {spellings[found[0]]!r}?)" if found else ""


def is_near(name: str, word: str) -> bool:
    """Whether `name` is `word` up to case, punctuation and a typo."""
    letters = _letters(name[: 2 * MAX_VALUE])
    return difflib.SequenceMatcher(None, letters, _letters(word)).ratio() >= 0.85


def why_no_directory(path: Path) -> str:
    """Why a path is no directory: `is a file, not a directory`, `is a link to …, which does not exist`."""
    try:
        if path.is_dir():
            return "is a directory"
        if path.exists():
            return "is a file, not a directory"
        if path.is_symlink():
            return f"is a link to {os.readlink(path)}, which does not exist"
    except (OSError, ValueError) as error:
        return f"cannot be accessed ({reason(error)})"
    return "is not a directory: it does not exist"


def reason(error: Exception) -> str:
    """The text of an error, without a path that may be thousands of characters long."""
    return getattr(error, "strerror", None) or next(iter(str(error).splitlines()), "").rstrip(".")


def sentence(error: BaseException) -> str:
    """A library's error in one line: its first non-empty line, or the name of its class."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return one_line(f"{error.strerror}: {error.filename}")
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return one_line(lines[0]) if lines else type(error).__name__


def is_dangling(path: Path) -> bool:
    """Whether a path is a broken link."""
    return path.is_symlink() and not path.exists()


def _without_middle(text: str, max_length: int) -> str:
    half = (max_length - 5) // 2
    return text if len(text) <= max_length else f"{text[:half]} ... {text[-half:]}"


def _letters(name: str) -> str:
    return re.sub(r"[\W_]", "", name.lower())
