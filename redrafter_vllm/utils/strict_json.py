# SPDX-License-Identifier: Apache-2.0
"""Standard JSON: Python's own module writes Infinity and NaN, which other readers refuse."""

import json
import math
from collections.abc import Mapping
from typing import Any


def dumps(value: Any, **options: Any) -> str:
    """`value` as JSON; a number that is not finite becomes null. `options` are those of `json.dumps`."""
    return json.dumps(_finite(value), allow_nan=False, **options)


def loads(text: str | bytes) -> Any:
    """Reads what `dumps` wrote; Infinity and NaN, which earlier versions wrote, become None.

    Raises:
        ValueError: The text is not JSON, or is nested too deeply to be read.
    """
    try:
        return json.loads(text, parse_constant=lambda name: None)
    except RecursionError:
        raise ValueError("it nests too deeply") from None


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(held) for key, held in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(held) for held in value]
    return value
