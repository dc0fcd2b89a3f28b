# SPDX-License-Identifier: Apache-2.0
"""Marks tests of C++ kernels."""

import pytest
import torch

from redrafter_vllm.ops import packed_linear
from redrafter_vllm.ops.native import compiler


def _has_compiler() -> bool:
    try:
        return bool(compiler())
    except FileNotFoundError:
        return False


needs_compiler = pytest.mark.skipif(not _has_compiler(), reason="no C++ compiler")
needs_packed_linear = pytest.mark.skipif(
    not packed_linear.supports(torch.zeros(32, 2, dtype=torch.bfloat16)),
    reason="this processor has no bfloat16 instructions, or AMX, or no compiler is installed",
)
