# SPDX-License-Identifier: Apache-2.0
import json
import math
from typing import Any

import pytest

from redrafter_vllm.utils import strict_json


def refuse(name: str) -> Any:
    raise ValueError(name)


def test_numbers_that_are_not_finite_become_null() -> None:
    value = {"a": [1.5, math.inf], "b": ({"c": math.nan},), "d": -math.inf, "e": True}
    text = strict_json.dumps(value)
    assert json.loads(text, parse_constant=refuse) == {"a": [1.5, None], "b": [{"c": None}], "d": None, "e": True}


def test_what_earlier_versions_wrote_is_read() -> None:
    assert strict_json.loads('{"max_seconds": Infinity, "loss": NaN, "least": -Infinity, "steps": 3}') == {
        "max_seconds": None,
        "loss": None,
        "least": None,
        "steps": 3,
    }


def test_options_are_passed_on() -> None:
    assert strict_json.dumps({"b": 1, "a": object}, sort_keys=True, default=lambda held: held.__name__) == (
        '{"a": "object", "b": 1}'
    )
    with pytest.raises(TypeError):
        strict_json.dumps({"a": object})


def test_nesting_without_end_is_no_json() -> None:
    with pytest.raises(ValueError, match="nests too deeply"):
        strict_json.loads("[" * 100_000)
