# SPDX-License-Identifier: Apache-2.0
"""First words of invented prompts."""

from itertools import pairwise
from pathlib import Path

from redrafter_training.data.report import DataError
from redrafter_vllm.utils.messages import sentence

GENERAL = "general"
FILE = Path(__file__).with_name("openings.txt")
NONE = ("",)


def load_openings(source: str | None, share: float = 1.0) -> tuple[str, ...]:
    """The lines of a file, `general` for the one of this package, without spaces around them; None is one empty line.

    With a `share` below 1 there are empty ones among them, evenly, so that the lines are this part of all.

    Raises DataError where the file cannot be read, or says nothing.
    """
    if source is None:
        return NONE
    file = FILE if source == GENERAL else Path(source)
    try:
        lines = tuple(line.strip() for line in file.read_text("utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as problem:
        raise DataError(f"--openings {source} is neither {GENERAL} nor a readable file ({sentence(problem)})") from None
    if not any(lines):
        raise DataError(f"--openings {file} has no words: give the first words of a prompt on each line")
    total = round(len(lines) / share)
    # Line number n stands where n / share passes an integer.
    places = [place * len(lines) // total for place in range(total + 1)]
    return tuple(lines[now] if after > now else "" for now, after in pairwise(places))
