# SPDX-License-Identifier: Apache-2.0
"""Memory on pages of 2 MB instead of 4 KB, for what every step of a small model on a CPU goes through once.

Weights are read from end to end, and what the interpreter and torch keep in the heap is spread over it; both have left
the processor's tables of addresses when the next step begins. A huge page needs one address where small ones need 512.
Linux gives such pages to who asks for them, unless the machine's administrator has forbidden it; elsewhere, and where
there are none, memory stays as it is.
"""

import ctypes
import mmap
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

PAGE = 2 << 20  # bytes, with the small pages of 4 KB that x86 and most others have
_MAPPING = 32 * PAGE
_LINE = 64  # bytes of a cache line, at which tensors begin
_COLLAPSE = 25  # MADV_COLLAPSE, of Linux 6.1, which Python's `mmap` does not name
_SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_MAPPINGS = Path("/proc/self/maps")


class HugePages:
    """Memory on huge pages for tensors that lie one behind the other, as many weights are smaller than a page.

    A mapping is given back when its last tensor is gone; only the newest one is also held here.
    """

    def __init__(self) -> None:
        self._free = torch.empty(0, dtype=torch.uint8)

    def copy(self, tensor: Tensor) -> Tensor:
        """A contiguous copy of a tensor on the CPU."""
        size = tensor.numel() * tensor.itemsize
        taken = size + -size % _LINE
        if taken > len(self._free):
            self._free = _map(max(_MAPPING, taken + -taken % PAGE))
        place, self._free = self._free[:size], self._free[taken:]
        return place.view(tensor.dtype).view(tensor.shape).copy_(tensor)


def _map(size: int) -> Tensor:
    if not hasattr(mmap, "MADV_HUGEPAGE"):  # not Linux
        return torch.empty(size, dtype=torch.uint8)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a Linux that was built without huge pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)


def move_heap() -> int:
    """Moves this process's heap to huge pages; returns the bytes that lie on them afterwards. It takes 2.5 s a GB.

    What is allocated later lies where the heap has room, or behind it on small pages.
    """
    if not _are_allowed():
        return 0
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return sum(PAGE for page in _pages_of_heap() if madvise(page, PAGE, _COLLAPSE) == 0)


def _are_allowed() -> bool:
    """Whether there are huge pages; the administrator's word is asked for, as moving disregards it."""
    try:
        return "[never]" not in _SETTING.read_text(encoding="ascii")
    except OSError:
        return False


def _pages_of_heap() -> list[int]:
    """Addresses of the huge pages that fit into the heap."""
    for line in _MAPPINGS.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.endswith("[heap]"):
            start, end = (int(address, 16) for address in line.split()[0].split("-"))
            return list(range(start + -start % PAGE, end - PAGE + 1, PAGE))
    return []
