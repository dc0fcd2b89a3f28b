# SPDX-License-Identifier: Apache-2.0
"""What Linux says of the memory of this process."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

_ACCOUNT = Path("/proc/self/smaps")
_START = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) ", re.MULTILINE)

needs_linux = pytest.mark.skipif(not _ACCOUNT.exists(), reason="needs Linux's account of memory")
needs_huge_pages = pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage/enabled").exists(), reason="needs a Linux with huge pages"
)


def mappings() -> Iterator[tuple[int, int, str]]:
    """First address, end and account of each mapping."""
    text = _ACCOUNT.read_text()
    starts = list(_START.finditer(text))
    for found, following in zip(starts, [*starts[1:], None], strict=True):
        account = text[found.start() : following.start() if following else None]
        yield int(found[1], 16), int(found[2], 16), account


def account(address: int) -> str:
    """Of the mapping in which an address lies."""
    return next(lines for start, end, lines in mappings() if start <= address < end)


def asks_for_huge_pages(address: int) -> bool:
    flags = re.search(r"^VmFlags: (.*)$", account(address), re.MULTILINE)
    return flags is not None and "hg" in flags[1].split()


def kilobytes_on_huge_pages(lines: str) -> int:
    found = re.search(r"^AnonHugePages: +(\d+) kB", lines, re.MULTILINE)
    return int(found[1]) if found else 0
