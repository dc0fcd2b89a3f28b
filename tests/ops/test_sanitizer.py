# SPDX-License-Identifier: Apache-2.0
"""The sanitizer on kernels with one error each, and on ours without their barriers."""

from typing import Any

import pytest
import torch
from torch._subclasses.functional_tensor import FunctionalTensor, FunctionalTensorMode

from tests.tools.cpu_support.interpreted import needs_interpreter

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402

from redrafter_vllm.ops.kv_compact.kernel import kv_compact  # noqa: E402
from redrafter_vllm.ops.prefix_tree.kernel import prefix_tree  # noqa: E402
from tests.ops.sanitizer import HazardError, sanitized  # noqa: E402

pytestmark = needs_interpreter


@triton.jit
def _store(out_ptr, step, VALUE: tl.constexpr):
    """Every program stores at `step` times its number: its own number, or VALUE."""
    program = tl.program_id(0)
    tl.store(out_ptr + program * step, program if VALUE < 0 else VALUE)


@triton.jit
def _shift(x_ptr, by, BLOCK: tl.constexpr, BARRIER: tl.constexpr):
    """Moves a program's block by `by` places, in place."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x_ptr + place)
    if BARRIER:
        tl.debug_barrier()
    tl.store(x_ptr + place + by, value + 1)


@triton.jit
def _read_back(x_ptr, BLOCK: tl.constexpr, BARRIER: tl.constexpr):
    place = tl.arange(0, BLOCK)
    tl.store(x_ptr + place, place)
    if BARRIER:
        tl.debug_barrier()
    tl.store(x_ptr + BLOCK + place, tl.load(x_ptr + BLOCK - 1 - place))


@triton.jit
def _scatter(x_ptr, BLOCK: tl.constexpr):
    place = tl.arange(0, BLOCK)
    tl.store(x_ptr + place // 2, place)


@triton.jit
def _mixed_widths(wide_ptr, narrow_ptr):
    """One program writes words, another one reads a byte of them."""
    if tl.program_id(0) == 0:
        tl.store(wide_ptr + 1, 7)
    else:
        tl.load(narrow_ptr + 5)


def numbers(count: int) -> torch.Tensor:
    return torch.zeros(count, dtype=torch.int64)


def test_programs_that_store_to_one_place() -> None:
    _store[(3,)](numbers(3), 1, VALUE=-1)
    _store[(3,)](numbers(3), 0, VALUE=5)
    with pytest.raises(
        HazardError, match=r"_store: out_ptr \+ 0 bytes .* side by side, by programs \[0, 1, 2\]; 1 such"
    ):
        _store[(3,)](numbers(3), 0, VALUE=-1)


def test_a_program_that_reads_what_another_stores() -> None:
    _shift[(1,)](numbers(256), 0, BLOCK=128, BARRIER=True)
    with pytest.raises(HazardError, match=r"x_ptr \+ 128 bytes .* side by side, by programs \[0, 1\]; 16 such"):
        _shift[(2,)](numbers(48), 16, BLOCK=16, BARRIER=True)
    with pytest.raises(HazardError, match="wide_ptr"):
        _mixed_widths[(2,)](words := torch.zeros(4, dtype=torch.int32), words.view(torch.uint8))


def test_what_needs_a_barrier() -> None:
    _read_back[(1,)](numbers(32), BLOCK=16, BARRIER=True)
    with pytest.raises(HazardError, match=r"x_ptr .* without a barrier .*; 16 such places"):
        _read_back[(1,)](numbers(32), BLOCK=16, BARRIER=False)
    _shift[(1,)](numbers(129), 1, BLOCK=128, BARRIER=True)
    with pytest.raises(HazardError, match=r"without a barrier .*; 127 such places"):
        _shift[(1,)](numbers(129), 1, BLOCK=128, BARRIER=False)
    with pytest.raises(HazardError, match=r"_scatter: .* without a barrier"):
        _scatter[(1,)](numbers(8), BLOCK=8)


@pytest.mark.parametrize(("block", "warps", "safe"), [(128, 4, True), (32, 1, True), (16, 1, True), (64, 4, False)])
def test_a_block_changed_in_place_has_an_element_for_every_thread(block: int, warps: int, safe: bool) -> None:
    changed = numbers(block)
    if safe:
        _shift[(1,)](changed, 0, BLOCK=block, BARRIER=False, num_warps=warps)
        assert changed.eq(1).all()
        return
    with pytest.raises(HazardError, match="without a barrier"):
        _shift[(1,)](changed, 0, BLOCK=block, BARRIER=False, num_warps=warps)


def test_accesses_outside() -> None:
    room = numbers(300)
    with pytest.raises(HazardError, match=r"_shift: program 1 goes to x_ptr \+ 1024 bytes, outside of it"):
        _shift[(2,)](room[:128].clone(), 0, BLOCK=128, BARRIER=True)
    # Memory of another tensor, whose address a kernel may have loaded. Some tensors have no memory.
    with FunctionalTensorMode():
        without_memory = FunctionalTensor.to_functional(torch.zeros(3))
    _store[(3,)](room[:1], 100, VALUE=-1)
    assert room[::100].tolist() == [0, 1, 2] and without_memory.shape == (3,)


def swap() -> tuple[Any, ...]:
    """A path whose moves overlap: an entry's target is a later entry's source."""
    cache = torch.randn(2, 2, 16, 8)
    path = torch.tensor([[1, 2, 3]])
    return [cache], path, torch.tensor([0]), torch.arange(8)


def test_our_kernels_need_their_barriers() -> None:
    kv_compact(*swap())
    beams = torch.tensor([[[1, 2], [1, 3]]]), torch.tensor([[[0, 0], [0, 1]]]), torch.full((1, 2, 2), -1.0)
    prefix_tree(*beams, 3)
    with sanitized(barriers=False):
        with pytest.raises(HazardError, match="_move_kernel"):
            kv_compact(*swap())
        with pytest.raises(HazardError, match=r"_build_kernel: (keys|places)_ptr"):
            prefix_tree(*beams, 3)
