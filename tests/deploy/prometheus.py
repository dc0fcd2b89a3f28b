# SPDX-License-Identifier: Apache-2.0
"""A Prometheus with the configuration of `deploy/`, which scrapes a server of the tests every second."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tools.pictures import prometheus
from tools.pictures.errors import PictureError

Query = Callable[[str], list[dict[str, Any]]]


@contextmanager
def scraping(server: str, folder: Path) -> Iterator[Query]:
    """Yields a function that evaluates a query: its series, each with `metric` (labels) and `value`."""
    try:
        prometheus.find_prometheus()
    except PictureError as missing:
        pytest.skip(str(missing))
    with prometheus.scraping(server, folder, 1) as running:
        yield running.now
