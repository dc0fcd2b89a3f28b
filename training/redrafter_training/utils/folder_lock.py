# SPDX-License-Identifier: Apache-2.0
"""Locks on folders and files that one process at a time may fill.

The operating system releases its lock on an open file when the process ends, so that no stale lock remains.
"""

import errno
import fcntl
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

LOCK = "lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class FolderInUseError(ValueError):
    """Another process is filling the folder or file."""


def locked(folder: Path, otherwise: str) -> AbstractContextManager[None]:
    """Locks the existing `folder` for this process; the lock file names the holder.

    Args:
        otherwise: the alternative to waiting, for the message.

    Raises:
        FolderInUseError: another process holds it; the message names it.
    """
    return _locked(folder / LOCK, folder, otherwise)


def locked_file(path: Path, otherwise: str) -> AbstractContextManager[None]:
    """The same for one file, which need not exist, in a folder that does."""
    return _locked(path.with_name(f".{path.name}.{LOCK}"), path, otherwise)


@contextmanager
def _locked(lock: Path, place: Path, otherwise: str) -> Iterator[None]:
    handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(handle, 200, 0).decode(errors="replace").strip() or "just starting"
            raise FolderInUseError(
                f"{place} is in use by another command ({holder}): wait for its end, or {otherwise}"
            ) from None
        except OSError as problem:
            if problem.errno not in _NO_LOCKS:
                raise
            print(
                f"{place} cannot be locked here ({problem.strerror}): do not start a second command in it",
                file=sys.stderr,
            )
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        try:
            yield
        finally:
            os.ftruncate(handle, 0)
    finally:
        os.close(handle)
