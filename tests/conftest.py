# SPDX-License-Identifier: Apache-2.0
"""Before anything imports torch: one thread, as models here are tiny and waiting threads would fight over two cores."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import logging
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests import markers


@pytest.fixture
def vllm_log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.LogCaptureFixture]:
    """Warnings of loggers below vLLM's name, however an earlier engine of this process has configured that one."""
    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
    with caplog.at_level(logging.WARNING, logger="vllm"):
        yield caplog


@pytest.fixture(autouse=True)
def current_environment() -> Iterator[None]:
    """Let vLLM read its environment variables anew after each test.

    The first engine of a process fixes all of them as they are at its start; one test's would hold for all others.
    """
    yield
    if (envs := sys.modules.get("vllm.envs")) is not None:
        envs.disable_envs_cache()


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
