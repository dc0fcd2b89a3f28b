# SPDX-License-Identifier: Apache-2.0
"""Before anything imports torch: one thread, as models here are tiny and waiting threads would fight over two cores."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Generator
from pathlib import Path

import pytest

from tests import markers


def pytest_report_header() -> list[str]:
    """`make test` says what it runs on."""
    from tests.processor import header

    return header()


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses by the markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ranks: dict[Path, int] = {}
    for item in items:
        markers.mark(item)
        ranks[item.path] = min(markers.rank(item), ranks.get(item.path, markers.rank(item)))
    items.sort(key=lambda item: ranks[item.path])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    markers.begin(item)
    try:
        return (yield)
    finally:
        markers.end()
