# SPDX-License-Identifier: Apache-2.0
"""The bounds that the other files rely on do stop a parser that breaks them."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuzz import inputs
from tests.fuzz.inputs import Tally, only, run_in


class RefusedError(ValueError):
    pass


def refuse(message: str) -> None:
    raise RefusedError(message)


def spend_time() -> None:
    start = time.process_time()
    while time.process_time() - start < 1.1:
        pass


@pytest.mark.parametrize(
    ("parse", "complaint"),
    [
        (lambda: refuse("two\nlines"), "not one printable line"),
        (lambda: refuse(""), "says nothing"),
        (lambda: refuse("x" * 5000), "5000 characters"),
        (spend_time, "took 1"),
        (lambda: Path("../outside").write_text(""), "outside"),
        (lambda: Path("inside").rename("../outside"), "outside"),
    ],
    ids=["lines", "silence", "length", "time", "write", "rename"],
)
def test_bounds(scratch: Path, parse: Callable[[], object], complaint: str) -> None:
    (scratch / "inside").touch()
    with pytest.raises(AssertionError, match=complaint), only(RefusedError):
        parse()
    assert not (scratch.parent / "outside").exists()


def test_undocumented_errors_pass_through() -> None:
    with pytest.raises(RecursionError), only(ValueError):
        raise RecursionError


def test_what_is_allowed(scratch: Path) -> None:
    tally = Tally()
    with run_in(scratch, tally):
        with only(RefusedError):
            (scratch / "new").write_text("")
        with only(RefusedError):
            refuse("One line.")
    assert (tally.inputs, tally.refused) == (2, 1)


def test_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "HANGS_AFTER", 1)
    with pytest.raises(AssertionError, match="still reading"), only(ValueError):
        time.sleep(30)
