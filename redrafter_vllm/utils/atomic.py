# SPDX-License-Identifier: Apache-2.0
"""Atomic writes: a file or folder is written under a temporary name beside its place, flushed to disk, then renamed.

A reader sees the old content or the new one, never a part. When the block raises, the temporary file or folder is
removed and the old content stays. A killed process leaves it behind; `remove_unfinished` deletes such leftovers.
"""

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SUFFIX = ".writing"


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary path to write to, which replaces the file `path` when the block ends; makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path.parent, path.name)
    try:
        yield temporary
        move_flushed(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes the file `path` atomically, as UTF-8."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A temporary folder to fill, which is renamed to `path` when the block ends; makes the folder above.

    Raises OSError then where `path` is anything but an empty folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(path.parent, path.name) as temporary:
        yield temporary
        move_flushed(temporary, path)


@contextmanager
def temporary_folder(parent: Path, name: str) -> Iterator[Path]:
    """A folder in `parent`, for what is to be `name` there; removed when the block ends."""
    temporary = _temporary(parent, name)
    temporary.mkdir()
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def move_flushed(temporary: Path, path: Path) -> None:
    """Flushes a file or a folder with all that it holds, renames it to `path`, and flushes the folder above."""
    for written in (*temporary.rglob("*"), temporary):
        flush(written)
    os.replace(temporary, path)
    flush(path.parent)


def is_unfinished(name: str) -> bool:
    """Whether a file or folder of this name is temporary."""
    return name.endswith(_SUFFIX)


def remove_unfinished(folder: Path) -> None:
    """Deletes what killed processes left in `folder`; only for a process that alone writes there."""
    for path in folder.iterdir():
        if is_unfinished(path.name):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Waits until the content of a file, or the entries of a folder, are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network file systems cannot flush folders.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():
            raise
    finally:
        os.close(handle)


def _temporary(parent: Path, name: str) -> Path:
    # Processes may write the same path at the same time. A name near the longest one allowed leaves no room for more.
    return parent / f".{name[:40]}-{secrets.token_hex(4)}{_SUFFIX}"
