# SPDX-License-Identifier: Apache-2.0
import os
from pathlib import Path

import pytest

from redrafter_vllm.utils.atomic import (
    atomic_file,
    atomic_folder,
    flush,
    is_unfinished,
    remove_unfinished,
    write_text,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "new" / ("x" * 255)
    write_text(path, "old")
    with atomic_file(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old" and is_unfinished(temporary.name)
    assert path.read_text() == "new" and names(path.parent) == [path.name]


def test_a_file_stays_when_the_block_raises(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "old")

    def fail() -> None:
        with atomic_file(path) as temporary:
            temporary.write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert path.read_text() == "old" and names(tmp_path) == ["file"]


def test_a_file_stays_when_it_cannot_be_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_text(path, "old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_text(path, "new")
    assert path.read_text() == "old" and names(tmp_path) == ["file"]


def test_a_folder_appears_complete_or_not_at_all(tmp_path: Path) -> None:
    def fill(path: Path, *, fail: bool) -> None:
        with atomic_folder(path) as temporary:
            write_text(temporary / "a" / "b", "text")
            assert not path.exists()
            if fail:
                raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fill(tmp_path / "one" / "two", fail=True)
    assert names(tmp_path / "one") == []
    fill(tmp_path / "one" / "two", fail=False)
    assert names(tmp_path / "one") == ["two"] and (tmp_path / "one" / "two" / "a" / "b").read_text() == "text"


def test_a_folder_with_content_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with atomic_folder(tmp_path / "empty") as temporary:
        write_text(temporary / "new", "")
    assert names(tmp_path / "empty") == ["new"]

    def replace() -> None:
        with atomic_folder(tmp_path / "empty") as temporary:
            write_text(temporary / "newer", "")

    with pytest.raises(OSError, match="not empty"):
        replace()
    assert names(tmp_path) == ["empty"] and names(tmp_path / "empty") == ["new"]


def test_leftovers_of_killed_processes_are_deleted(tmp_path: Path) -> None:
    for name in (".file-0123.writing", "shard.jsonl.writing", "kept"):
        (tmp_path / name).touch()
    write_text(tmp_path / ".folder-0123.writing" / "part", "")
    (tmp_path / ".link-0123.writing").symlink_to(tmp_path / "kept")
    remove_unfinished(tmp_path)
    assert names(tmp_path) == ["kept"]


def test_a_folder_that_cannot_be_flushed_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on some network file systems."""

    def unsupported(handle: int) -> None:
        raise OSError(22, "Invalid argument")

    write_text(tmp_path / "file", "")
    monkeypatch.setattr(os, "fsync", unsupported)
    flush(tmp_path)
    with pytest.raises(OSError, match="Invalid"):
        flush(tmp_path / "file")
