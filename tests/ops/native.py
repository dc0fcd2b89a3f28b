# SPDX-License-Identifier: Apache-2.0
"""Marks tests of C++ kernels."""

import os
import shutil

import pytest

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, (os.environ.get("CXX", "").split(" ")[0] or "g++", "clang++", "c++"))),
    reason="no C++ compiler",
)
