# SPDX-License-Identifier: Apache-2.0
"""Checks interpreted kernels for hazards on a GPU."""

from collections.abc import Iterator

import pytest

from redrafter_cpu.triton_backend import DECISION


@pytest.fixture(autouse=True)
def _no_hazards(request: pytest.FixtureRequest) -> Iterator[None]:
    if not DECISION.active:
        yield
        return
    from tests.ops.sanitizer import sanitized

    with sanitized(races=not request.node.get_closest_marker("racing")):
        yield
