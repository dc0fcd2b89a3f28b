# SPDX-License-Identifier: Apache-2.0
"""Parts of error messages: values as they are shown, and what a misspelt name may have meant."""

import difflib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_LONGEST = 80


def shown(value: Any) -> str:
    """A user's value for a sentence: its `repr` on one line, cut where it is long."""
    try:
        text = repr(value)
    except ValueError:  # Python shows no number of thousands of digits
        return f"a value of type {type(value).__name__} that is too long to show"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}… ({len(text):,} characters)"


def did_you_mean(name: Any, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)` to put behind the name in a sentence; nothing where no known name is near."""
    spellings = {_letters(one): one for one in known}
    found = difflib.get_close_matches(_letters(str(name)[:_LONGEST]), spellings, n=1, cutoff=0.75)
    return f" (did you mean {spellings[found[0]]!r}?)" if found else ""


def is_near(name: str, word: str) -> bool:
    """Whether `name` is `word`, in another spelling or but for a typo."""
    letters = _letters(name[: 2 * _LONGEST])
    return difflib.SequenceMatcher(None, letters, _letters(word)).ratio() >= 0.85


def why_no_directory(path: Path) -> str:
    """What stands at a path where a directory was expected: `does not exist`, `is a file`, `is a link to …`."""
    try:
        if path.is_dir():
            return "is a directory"
        if path.exists():
            return "is a file, not a directory"
        if path.is_symlink():
            return f"is a link to {os.readlink(path)}, which does not exist"
    except (OSError, ValueError) as error:
        return f"cannot be looked at ({reason(error)})"
    return "is not a directory: nothing stands there"


def reason(error: Exception) -> str:
    """What an error says, without a path that may be thousands of characters long."""
    return getattr(error, "strerror", None) or next(iter(str(error).splitlines()), "").rstrip(".")


def is_dangling(path: Path) -> bool:
    """Whether a path is a link that leads nowhere."""
    return path.is_symlink() and not path.exists()


def _letters(name: str) -> str:
    return re.sub(r"[\W_]", "", name.lower())
