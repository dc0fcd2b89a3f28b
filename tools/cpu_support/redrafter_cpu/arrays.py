# SPDX-License-Identifier: Apache-2.0
"""Numpy views of what kernels are given.

The interpreter computes with numpy, so the stand-ins do too: logarithms and exponentials of numpy and torch differ in
the last bit.
"""

from __future__ import annotations

import ctypes

import numpy as np
import torch

Array = np.ndarray


def view(tensor: torch.Tensor) -> Array:
    """The tensor's memory as an array of the same shape; writes go through. No bfloat16."""
    return tensor.detach().numpy()


def load(tensor: torch.Tensor) -> Array:
    """The tensor's values for reading: as `view`, but 16-bit floats come as a float32 copy."""
    values = tensor.detach()
    return (values.float() if values.dtype in (torch.bfloat16, torch.float16) else values).numpy()


def flat(tensor: torch.Tensor) -> Array:
    """All that a pointer to the tensor reaches, as one axis."""
    return torch.as_strided(tensor.detach(), (_reach(tensor),), (1,)).numpy()


def _reach(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage().nbytes() // tensor.element_size() - tensor.storage_offset())


def int32_at(address: int, count: int) -> Array:
    """`count` 32-bit integers at a raw address, as kernels that take tables of pointers read them."""
    return np.ctypeslib.as_array((ctypes.c_int32 * count).from_address(address))


def padded(values: Array, block: int, fill: float) -> Array:
    """`[R, V]` copied to `[R, cdiv(V, block), block]`, filled up with `fill`."""
    rows, width = values.shape
    blocks = -(-width // block)
    out = np.full((rows, blocks * block), fill, dtype=values.dtype)
    out[:, :width] = values
    return out.reshape(rows, blocks, block)
