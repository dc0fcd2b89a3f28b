# SPDX-License-Identifier: Apache-2.0
"""Before anything imports torch: one thread, as models here are tiny and waiting threads would fight over two cores."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_report_header() -> list[str]:
    """`make test` says what it runs on."""
    from tests.processor import header

    return header()
