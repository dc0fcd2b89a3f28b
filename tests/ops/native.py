# SPDX-License-Identifier: Apache-2.0
"""Marks tests of C++ kernels."""

import pytest

from redrafter_vllm.ops.native import compiler


def _has_compiler() -> bool:
    try:
        return bool(compiler())
    except FileNotFoundError:
        return False


needs_compiler = pytest.mark.skipif(not _has_compiler(), reason="no C++ compiler")
