# SPDX-License-Identifier: Apache-2.0
"""The device of kernels in these tests: the GPU if there is one, else the CPU, interpreted."""

import importlib.util

import pytest
import torch

from tests.tools.cpu_support.interpreted import needs_interpreter

HAS_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if HAS_GPU else "cpu")
_HAS_TRITON = importlib.util.find_spec("triton") is not None

runs_kernels = pytest.mark.skipif(not _HAS_TRITON, reason="Triton is not installed") if HAS_GPU else needs_interpreter


def poisoned(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    """An output filled with values that are no result."""
    value = float("nan") if dtype.is_floating_point else True if dtype == torch.bool else 0x5A
    return torch.full(shape, value, dtype=dtype, device=DEVICE)


def assert_equal(result: torch.Tensor, wanted: torch.Tensor) -> None:
    """Same type, shape and values."""
    assert result.dtype == wanted.dtype and result.shape == wanted.shape
    assert torch.equal(result.cpu(), wanted.cpu()), f"{result}\n{wanted}"
