# SPDX-License-Identifier: Apache-2.0
"""docs/reference/options.md is what tools/list_options.py makes of the classes and parsers."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from tools import list_options


def test_the_page_is_current(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REDRAFTER_HOME", raising=False)
    made = list_options.document()
    assert list_options.DOCUMENT.read_text(encoding="utf-8") == made, "run python -m tools.list_options"


@dataclass
class Known:
    """For the test.

    Attributes:
        first: of two lines,
            with a | in it.
        second: a choice.
        third: a switch.
        fourth: numbers; see docs/dev/log.md.
    """

    first: Path
    second: Literal["a", "b"] = "b"
    third: bool = False
    fourth: tuple[float, ...] = field(default_factory=lambda: (0.5, 1.0))


def test_rows_of_a_class() -> None:
    assert list_options.class_rows(Known, prefix="p.") == [
        ("`--p.first`", "path", "required", r"of two lines, with a \| in it."),
        ("`--p.second`", "`a`, `b`", "`b`", "a choice."),
        ("`--p.third`", "switch", "", "a switch."),
        ("`--p.fourth`", "list of numbers", "`[0.5, 1.0]`", "numbers; see [dev/log.md](../dev/log.md)."),
    ]


def test_a_field_without_a_description() -> None:
    @dataclass
    class Unknown:
        """Nothing is said of `silent`."""

        silent: int = 0

    with pytest.raises(ValueError, match=r"Unknown\.silent is not described"):
        list_options.class_rows(Unknown)
