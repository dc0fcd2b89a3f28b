# SPDX-License-Identifier: Apache-2.0
"""Values from outside in messages: on one line and not too long, whatever they are."""

from collections.abc import Sequence
from reprlib import Repr

LONGEST_LINE = 1000
LONGEST_VALUE = 80
_READABLE_BITS = 128


class _Short(Repr):
    """Cuts what is long and what is deep; a number too long to be read is given by its size."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 3
        self.maxstring = self.maxother = LONGEST_VALUE

    def repr_int(self, x: int, level: int) -> str:
        # Python refuses to write integers of more than a few thousand digits.
        return repr(x) if x.bit_length() <= _READABLE_BITS else f"an integer of {x.bit_length()} bits"


_SHORT = _Short()


def shown(value: object) -> str:
    """`repr(value)`, cut where it is long."""
    text = one_line(_SHORT.repr(value))
    return text if len(text) <= 3 * LONGEST_VALUE else f"{text[: 3 * LONGEST_VALUE]}..."


def listed(names: Sequence[str], most: int = 4) -> str:
    """The first names, as they are unless they are long or unprintable, and the number of the others."""
    first = [name if name.isprintable() and len(name) <= LONGEST_VALUE else shown(name) for name in names[:most]]
    return ", ".join(first) + (f" and {len(names) - most} more" if len(names) > most else "")


def one_line(text: str) -> str:
    """`text` with what cannot be printed escaped, and without its middle where it is very long."""
    text = _without_middle(text, 2 * LONGEST_LINE)
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return _without_middle(text, LONGEST_LINE)


def _without_middle(text: str, most: int) -> str:
    half = (most - 5) // 2
    return text if len(text) <= most else f"{text[:half]} ... {text[-half:]}"
