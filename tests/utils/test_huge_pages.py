# SPDX-License-Identifier: Apache-2.0
"""Huge pages: what Linux says of the memory that tensors and the heap lie in."""

import gc
from pathlib import Path

import pytest
import torch

from redrafter_vllm.utils import huge_pages
from redrafter_vllm.utils.huge_pages import PAGE, HugePages, move_heap
from tests.mappings import asks_for_huge_pages, kilobytes_on_huge_pages, mappings, needs_huge_pages, needs_linux


def test_copies() -> None:
    """Of any size, also larger than a mapping or empty; what is written to one does not reach another."""
    pages, generator = HugePages(), torch.Generator().manual_seed(0)
    shapes = [(3, 5), (7,), (2, 3, 4), (1,), (0, 4), (35, 1 << 20), (5,)]
    tensors = [torch.randn(shape, generator=generator).bfloat16() for shape in shapes]
    copies = [pages.copy(tensor) for tensor in tensors]
    for copy, tensor in zip(copies, tensors, strict=True):
        assert torch.equal(copy, tensor) and copy.dtype == tensor.dtype
        assert copy.is_contiguous() and copy.data_ptr() % 64 == 0
    for copy in copies:
        copy.fill_(0)
        assert all(torch.equal(a, b) or not a.any() for a, b in zip(copies, tensors, strict=True))


def test_a_copy_of_a_view() -> None:
    tensor = torch.arange(12, dtype=torch.int32).view(3, 4)
    copy = HugePages().copy(tensor.t()[1:])
    assert copy.is_contiguous() and copy.tolist() == [[1, 5, 9], [2, 6, 10], [3, 7, 11]]


@needs_huge_pages
def test_copies_lie_where_huge_pages_were_asked_for() -> None:
    tensor = torch.ones(4 * PAGE, dtype=torch.uint8)
    copy = HugePages().copy(tensor)
    assert asks_for_huge_pages(copy.data_ptr()) and not asks_for_huge_pages(tensor.data_ptr())


@needs_linux
def test_memory_is_given_back_with_its_last_tensor() -> None:
    pages, large = HugePages(), torch.ones(70 << 20, dtype=torch.uint8)
    copies = [pages.copy(large) for _ in range(2)]
    address = copies[0].data_ptr()
    assert any(start <= address < end for start, end, _ in mappings())
    del copies, pages
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
