# SPDX-License-Identifier: Apache-2.0
"""Values in messages."""

import pytest

from redrafter_vllm.checkpoint.errors import CheckpointError
from redrafter_vllm.config import OptionError
from redrafter_vllm.utils.messages import MAX_LINE, listed, one_line, shown


class Unspeakable:
    def __repr__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (8, "8"),
        (True, "True"),
        ("a'b", '"a\'b"'),
        ("a\nb\u202e\ud800", r"'a\nb\u202e\ud800'"),
        (10**20, "100000000000000000000"),
        (-(2**127), str(-(2**127))),
        (2**5000, "an integer of 5001 bits"),
        (None, "None"),
        ([1, [2, [3, [4]]]], "[1, [2, [3, [...]]]]"),
        (list(range(100)), "[0, 1, 2, 3, 4, 5, ...]"),
    ],
    ids=repr,
)
def test_shown(value: object, text: str) -> None:
    assert shown(value) == text


@pytest.mark.parametrize(
    "value", ["x" * 10**6, ["x" * 10**6] * 100, {"x" * 1000: "y\n" * 1000}, Unspeakable()], ids=type
)
def test_shown_is_short(value: object) -> None:
    assert 0 < len(shown(value)) < 250 and shown(value).isprintable()


def test_shown_of_depth() -> None:
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    assert shown(deep) == "[[[[...]]]]"
    while deep:  # piece by piece: freeing it all at once recurses
        deep = deep.pop()


def test_listed() -> None:
    assert listed(["a", "b c"]) == "a, b c"
    assert listed(["a\n", *"bcdefg"]) == r"'a\n', b, c, d and 3 more"


def test_one_line() -> None:
    assert one_line("A sentence, as it is.") == "A sentence, as it is."
    assert one_line("two\nlines\t\x1b[31m\ud800") == r"two\nlines\t\x1b[31m\ud800"
    cut = one_line("a" * 5000 + ": do this.")
    assert len(cut) <= MAX_LINE and cut.endswith(": do this.") and " ... " in cut


@pytest.mark.parametrize("error", [CheckpointError, OptionError])
def test_errors_are_one_line(error: type[Exception]) -> None:
    message = str(error("a\nb" + "x" * 10**6 + "\n" + "do this."))
    assert message.isprintable() and len(message) <= MAX_LINE and message.endswith("do this.")
