# SPDX-License-Identifier: Apache-2.0
"""Huge pages: what Linux says of the memory that tensors and the heap lie in."""

import gc
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from redrafter_vllm.utils import huge_pages
from redrafter_vllm.utils.huge_pages import PAGE, HugePages, move_heap

needs_linux = pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux's account of memory")
MAPPING = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) .*$")


def mappings() -> Iterator[tuple[int, int, str]]:
    """Start, end and account of each mapping."""
    start = end = 0
    lines: list[str] = []
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if found := MAPPING.match(line):
            if lines:
                yield start, end, "\n".join(lines)
            start, end, lines = int(found[1], 16), int(found[2], 16), []
        lines.append(line)
    yield start, end, "\n".join(lines)


def account(address: int) -> str:
    return next(lines for start, end, lines in mappings() if start <= address < end)


def kilobytes_on_huge_pages(lines: str) -> int:
    found = re.search(r"AnonHugePages: +(\d+) kB", lines)
    return int(found[1]) if found else 0


def test_tensors_keep_apart_what_they_hold() -> None:
    pages = HugePages()
    shapes = [(3, 5), (7,), (2, 3, 4), (1,), (0, 4), (1000, 100)]
    tensors = [pages.empty(*shape, dtype=torch.bfloat16).fill_(n) for n, shape in enumerate(shapes)]
    for n, (tensor, shape) in enumerate(zip(tensors, shapes, strict=True)):
        assert tensor.shape == shape and tensor.dtype == torch.bfloat16 and tensor.is_contiguous()
        assert tensor.numel() == 0 or (tensor == n).all()
        assert tensor.data_ptr() % 64 == 0


def test_tensors_larger_than_a_mapping() -> None:
    pages = HugePages()
    small = pages.empty(10, dtype=torch.uint8).fill_(1)
    large = pages.empty(70 << 20, dtype=torch.uint8).fill_(2)
    behind = pages.empty(10, dtype=torch.uint8).fill_(3)
    assert small.unique().tolist() == [1] and large.unique().tolist() == [2] and behind.unique().tolist() == [3]


@needs_linux
def test_tensors_lie_where_huge_pages_were_asked_for() -> None:
    tensor = HugePages().empty(4 * PAGE, dtype=torch.uint8).fill_(1)
    flags = re.search(r"^VmFlags: (.*)$", account(tensor.data_ptr()), re.MULTILINE)
    assert flags is not None and "hg" in flags[1].split()


@needs_linux
def test_memory_is_given_back_with_its_last_tensor() -> None:
    pages = HugePages()
    tensors = [pages.empty(70 << 20, dtype=torch.uint8) for _ in range(2)]
    address = tensors[0].data_ptr()
    assert any(start <= address < end for start, end, _ in mappings())
    del tensors, pages
    gc.collect()
    assert not any(start <= address < end for start, end, _ in mappings())


@pytest.mark.skipif(not huge_pages._are_allowed(), reason="needs a Linux with huge pages")
def test_the_heap_lies_on_huge_pages() -> None:
    kept = [bytes(60_000) for _ in range(200)]  # smaller than what gets a mapping of its own
    moved = move_heap()
    if moved == 0:
        pytest.skip("this Linux moves no memory that is in use")
    heap = next(lines for _, _, lines in mappings() if lines.splitlines()[0].endswith("[heap]"))
    assert moved // 1024 <= kilobytes_on_huge_pages(heap)
    assert all(piece == bytes(60_000) for piece in kept)


def test_nothing_moves_where_it_is_forbidden(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    setting = tmp_path / "enabled"
    monkeypatch.setattr(huge_pages, "_SETTING", setting)
    assert move_heap() == 0  # the machine has no huge pages
    setting.write_text("always madvise [never]\n")
    assert move_heap() == 0


def test_a_heap_that_begins_within_a_page(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    listed = tmp_path / "maps"
    monkeypatch.setattr(huge_pages, "_MAPPINGS", listed)
    listed.write_text(
        "00200000-00800000 rw-p 00000000 00:00 0 \n"
        "00a01000-01001000 rw-p 00000000 00:00 0                                  [heap]\n"
    )
    assert huge_pages._pages_of_heap() == [0xC00000, 0xE00000]
    listed.write_text("00a01000-00c00000 rw-p 00000000 00:00 0 [heap]\n")
    assert huge_pages._pages_of_heap() == []
    listed.write_text("00200000-00800000 rw-p 00000000 00:00 0 \n")
    assert huge_pages._pages_of_heap() == []
