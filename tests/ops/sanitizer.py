# SPDX-License-Identifier: Apache-2.0
"""Finds errors in kernels that the interpreter does not: accesses outside tensors, and races.

The interpreter runs programs one after the other, and each of them operation by operation. On a GPU programs run side
by side, and so do the threads of one program: only a barrier orders what one thread has stored before what another
one loads. Therefore, of the accesses to one address during a launch, these are hazards:

- accesses by two programs, one of them a store, unless all are stores of one value;
- within a program and between two barriers, a store and any other access, unless all of them are made by one element
  of tensors of one size, the loads first: a thread's own element, loaded, changed and stored. Where a tensor has fewer
  elements than the program has threads, several warps load each element and one of them stores it: a hazard, too.

What is loaded is assumed to be needed for what is stored to the same place.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from inspect import getcallargs
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import triton.language as tl
from triton.runtime import interpreter

_WARP = 32


class HazardError(AssertionError):
    """A race on a GPU, or an access outside of all tensors."""


class _Access(NamedTuple):
    """One load or store of a tensor by one program, without masked elements."""

    program: int
    epoch: int  # barriers passed before
    order: int  # of the operation within the launch
    addresses: np.ndarray  # [n] in bytes
    elements: np.ndarray  # [n] places within the tensor
    size: int  # of the tensor
    itemsize: int
    values: np.ndarray | None  # [n, itemsize] bytes, of a store


@dataclass
class _Launch:
    """The accesses of the programs of a launch so far."""

    kernel: str
    tensors: dict[str, torch.Tensor]
    num_threads: int
    program: int = -1
    epoch: int = 0
    loads: list[_Access] = field(default_factory=list)
    stores: list[_Access] = field(default_factory=list)
    living: set[tuple[int, int]] = field(default_factory=set)  # extents

    def __post_init__(self) -> None:
        self.extents = [_extent(tensor) for tensor in self.tensors.values()]

    def begin_program(self) -> None:
        self.program, self.epoch = self.program + 1, 0

    def add(self, pointers: np.ndarray, mask: np.ndarray, itemsize: int, values: np.ndarray | None) -> None:
        shape = np.broadcast_shapes(pointers.shape, mask.shape)
        elements = np.flatnonzero(np.broadcast_to(mask, shape))
        addresses = np.broadcast_to(pointers, shape).reshape(-1)[elements].astype(np.int64)
        order, size = len(self.loads) + len(self.stores), int(np.prod(shape))
        access = _Access(self.program, self.epoch, order, addresses, elements, size, itemsize, None)
        self._check_bounds(access)
        if values is None:
            self.loads.append(access)
        else:
            stored = np.ascontiguousarray(np.broadcast_to(values, shape).reshape(-1)[elements])
            self.stores.append(access._replace(values=stored.view(np.uint8).reshape(-1, itemsize)))

    def _check_bounds(self, access: _Access) -> None:
        if not len(access.addresses):
            return
        least, most = access.addresses.min(), access.addresses.max() + access.itemsize
        if any(start <= least and most <= end for start, end in self.extents):
            return
        outside = access.addresses
        for extent in self.extents:
            outside = _outside(outside, access.itemsize, *extent)
        if len(outside):
            # A kernel may load addresses from memory: then any live tensor is accepted.
            self.living = self.living or _living_extents()
            for extent in self.living:
                outside = _outside(outside, access.itemsize, *extent)
        if len(outside):
            nearest = min(self.tensors, key=lambda name: abs(self.tensors[name].data_ptr() - int(outside[0])))
            offset = int(outside[0]) - self.tensors[nearest].data_ptr()
            raise HazardError(
                f"{self.kernel}: program {self.program} goes to {nearest} + {offset} bytes, outside of it"
            )

    def check_races(self) -> None:
        if not any(len(access.addresses) for access in self.stores):
            return
        unit = min(access.itemsize for access in (*self.loads, *self.stores))
        stored = np.unique(np.concatenate([_units(access, unit) for access in self.stores]))
        table = _Table.of([*self.loads, *self.stores], stored, unit, self.num_threads)
        for problem, found in (
            ("without a barrier between them", table.in_one_program()),
            ("side by side", table.across()),
        ):
            if len(found):
                name, place = self._named(int(found[0]) * unit)
                programs = sorted(set(table.programs[table.addresses == found[0]].tolist()))
                raise HazardError(
                    f"{self.kernel}: {name} + {place} bytes is stored and accessed again {problem}, by programs "
                    f"{programs[:8]}; {len(found)} such places"
                )

    def _named(self, address: int) -> tuple[str, int]:
        for name, tensor in self.tensors.items():
            start, end = _extent(tensor)
            if start <= address < end:
                return name, address - start
        return "memory", address


@dataclass(frozen=True)
class _Table:
    """Accesses to the addresses that a launch stores to, one per row, sorted by address, program, epoch and order."""

    addresses: np.ndarray  # in units
    programs: np.ndarray
    epochs: np.ndarray
    orders: np.ndarray
    elements: np.ndarray
    sizes: np.ndarray
    is_store: np.ndarray
    values: np.ndarray  # that are stored, as numbers
    has_lanes: np.ndarray  # whether no two warps load the same element

    @classmethod
    def of(cls, accesses: list[_Access], stored: np.ndarray, unit: int, num_threads: int) -> "_Table":
        columns: list[list[np.ndarray]] = [[] for _ in range(9)]
        for access in accesses:
            if not len(access.addresses):
                continue
            last = (access.addresses.max() + access.itemsize - 1) // unit
            if last < stored[0] or access.addresses.min() // unit > stored[-1]:
                continue
            addresses = _units(access, unit)
            kept = np.isin(addresses, stored)
            if not kept.any():
                continue
            row = (
                addresses,
                access.program,
                access.epoch,
                access.order,
                access.elements.repeat(access.itemsize // unit),
                access.size,
                access.values is not None,
                0 if access.values is None else _as_numbers(access.values, unit),
                access.size >= num_threads or num_threads <= _WARP,
            )
            for column, cell in zip(columns, row, strict=True):
                column.append(np.broadcast_to(cell, len(addresses))[kept])
        joined = [np.concatenate(column) for column in columns]
        by = np.lexsort((joined[3], joined[2], joined[1], joined[0]))
        return cls(*(column[by] for column in joined))

    def in_one_program(self) -> np.ndarray:
        """Addresses of hazards among the accesses of one program between two barriers."""
        starts = _starts(self.addresses, self.programs, self.epochs)
        first_store = np.minimum.reduceat(np.where(self.is_store, self.orders, np.iinfo(np.int64).max), starts)
        last_load = np.maximum.reduceat(np.where(self.is_store, -1, self.orders), starts)
        own = _all_equal(self.elements, starts) & _all_equal(self.sizes, starts) & (last_load < first_store)
        own &= np.logical_and.reduceat(self.has_lanes, starts) | (last_load < 0)
        has_store = np.logical_or.reduceat(self.is_store, starts)
        return self.addresses[starts][has_store & ~own & ~self._one_value(starts)]

    def across(self) -> np.ndarray:
        """Addresses of hazards among programs."""
        starts = _starts(self.addresses)
        return self.addresses[starts][~_all_equal(self.programs, starts) & ~self._one_value(starts)]

    def _one_value(self, starts: np.ndarray) -> np.ndarray:
        """Groups of stores alone, all of the same value."""
        return np.logical_and.reduceat(self.is_store, starts) & _all_equal(self.values, starts)


def _extent(tensor: torch.Tensor) -> tuple[int, int]:
    """First and last address of the elements of a view."""
    if not tensor.numel() or tensor.layout != torch.strided:
        return 0, 0
    start = tensor.data_ptr()
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return start, start + (last + 1) * tensor.itemsize


def _living_extents() -> set[tuple[int, int]]:
    gc.unfreeze()  # vLLM hides what an engine has built
    found = set()
    for x in gc.get_objects():
        if issubclass(type(x), torch.Tensor) and x.device.type == "cpu":
            with suppress(RuntimeError):  # tensors that a compiler traces with have no memory
                found.add(_extent(x))
    return found


def _outside(addresses: np.ndarray, itemsize: int, start: int, end: int) -> np.ndarray:
    return addresses[(addresses < start) | (addresses + itemsize > end)]


def _units(access: _Access, unit: int) -> np.ndarray:
    """Addresses of the access's pieces of `unit` bytes, divided by `unit`."""
    pieces = np.arange(access.itemsize // unit)
    return (access.addresses[:, None] // unit + pieces).reshape(-1)


def _as_numbers(values: np.ndarray, unit: int) -> np.ndarray:
    """Stored pieces as integers, equal where their bits are equal."""
    whole = np.ascontiguousarray(values).reshape(-1)
    return whole.view({1: np.int8, 2: np.int16, 4: np.int32, 8: np.int64}[unit]).astype(np.int64)


def _starts(*columns: np.ndarray) -> np.ndarray:
    """First rows of the groups of rows that are equal in all sorted columns."""
    changes = np.logical_or.reduce([column[1:] != column[:-1] for column in columns])
    return np.concatenate(([0], np.flatnonzero(changes) + 1))


def _all_equal(column: np.ndarray, starts: np.ndarray) -> np.ndarray:
    return np.minimum.reduceat(column, starts) == np.maximum.reduceat(column, starts)


@contextmanager
def sanitized(*, of: str = "", races: bool = True, barriers: bool = True) -> Iterator[None]:
    """Check every launch of an interpreted kernel within the block, or of those in the package `of`.

    Without `races` only where accesses go; without `barriers` none of them counts, so that a launch that needs one is
    seen to. Raises HazardError.
    """
    launch: _Launch | None = None
    builder, executor = interpreter.InterpreterBuilder, interpreter.GridExecutor
    call, load, store = executor.__call__, builder.create_masked_load, builder.create_masked_store
    set_program = builder.set_grid_idx

    def checked_call(self: Any, *args: Any, **kwargs: Any) -> None:
        nonlocal launch
        if not self.fn.__module__.startswith(of):
            call(self, *args, **kwargs)
            return
        given = getcallargs(self.fn, *args, **{k: v for k, v in kwargs.items() if k in self.arg_names})
        tensors = {name: value for name, value in given.items() if isinstance(value, torch.Tensor)}
        launch = _Launch(self.fn.__name__, tensors, _WARP * kwargs.get("num_warps", 4))
        try:
            call(self, *args, **kwargs)
            if races:
                launch.check_races()
        except interpreter.InterpreterError as error:
            if isinstance(error.__cause__, HazardError):
                raise error.__cause__ from None
            raise
        finally:
            launch = None

    def begin_program(self: Any, *index: int) -> None:
        if launch is not None:
            launch.begin_program()
        set_program(self, *index)

    def checked_load(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        if launch is not None:
            launch.add(pointers.data, mask.data, _itemsize(pointers), None)
        return load(self, pointers, mask, *rest)

    def checked_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        if launch is not None:
            launch.add(pointers.data, mask.data, _itemsize(pointers), value.data)
        return store(self, pointers, value, mask, *rest)

    def counted_barrier() -> None:
        if launch is not None:
            launch.epoch += barriers

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(executor, "__call__", checked_call)
        patch.setattr(builder, "set_grid_idx", begin_program)
        patch.setattr(builder, "create_masked_load", checked_load)
        patch.setattr(builder, "create_masked_store", checked_store)
        # Interpreted, it does nothing; vLLM's CPU worker has put such a thing in its place already.
        patch.setattr(tl, "debug_barrier", counted_barrier)
        yield


def _itemsize(pointers: Any) -> int:
    return max(pointers.get_element_ty().primitive_bitwidth // 8, 1)
