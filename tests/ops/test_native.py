# SPDX-License-Identifier: Apache-2.0
"""C++ kernels are built once, and an op works without them."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from redrafter_vllm.ops import native
from redrafter_vllm.ops.kv_compact import kv_compact
from tests.ops.native import needs_compiler

SOURCE = """#include <cstdint>
extern "C" int64_t answer(int64_t x) { return x + %d; }
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("REDRAFTER_HOME", str(tmp_path / "home"))
    native.library.cache_clear()
    yield tmp_path / "home"
    native.library.cache_clear()


def source(folder: Path, number: int) -> Path:
    path = folder / "op" / "native.cpp"
    path.parent.mkdir(exist_ok=True)
    path.write_text(SOURCE % number)
    return path


@needs_compiler
def test_a_library_is_built_once_and_again_after_a_change(tmp_path: Path, home: Path) -> None:
    path = source(tmp_path, 1)
    library = native.library(path)
    assert library is not None and library.answer(2) == 3
    (built,) = (home / "native").iterdir()
    stamp = built.stat().st_mtime_ns
    native.library.cache_clear()
    assert native.library(path) is not None
    assert [file.stat().st_mtime_ns for file in (home / "native").iterdir()] == [stamp]

    source(tmp_path, 5)
    native.library.cache_clear()
    changed = native.library(path)
    assert changed is not None and changed.answer(2) == 7
    assert len([*(home / "native").iterdir()]) == 2


@pytest.mark.parametrize(
    ("compiler", "reason"),
    [
        ("/no/c++", "there is no /no/c++, which CXX names"),
        ("false", "false fails"),
        ("cat", "cat fails"),
    ],
)
def test_without_a_compiler_plain_torch_serves(
    home: Path, monkeypatch: pytest.MonkeyPatch, vllm_log: pytest.LogCaptureFixture, compiler: str, reason: str
) -> None:
    monkeypatch.setenv("CXX", compiler)
    cache = torch.arange(32.0).view(4, 1, 8, 1)
    expected = cache.clone()
    expected[0, 0, 3] = cache[0, 0, 5]
    for _ in range(2):
        kv_compact([cache], torch.tensor([[2, -1]]), torch.tensor([2]), torch.arange(8))
    assert torch.equal(cache, expected)
    (message,) = {record.getMessage() for record in vllm_log.records if "slower operations" in record.getMessage()}
    assert "kv_compact/native.cpp" in message and reason in message
    assert not [file for file in home.rglob("*") if file.is_file()]


@needs_compiler
def test_a_home_that_cannot_be_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vllm_log: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("REDRAFTER_HOME", os.fspath(tmp_path / "file"))
    native.library.cache_clear()
    assert native.library(source(tmp_path, 1)) is None
    assert "slower operations take the place of op/native.cpp" in vllm_log.text
    native.library.cache_clear()
