# SPDX-License-Identifier: Apache-2.0
"""Locks on folders that one process at a time may fill.

The operating system releases its lock on an open file when the process ends, so that no stale lock remains.
"""

import errno
import fcntl
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK = "lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class FolderInUseError(ValueError):
    """Another process is filling the folder."""


@contextmanager
def locked(folder: Path, otherwise: str) -> Iterator[None]:
    """Locks the existing `folder` for this process; the lock file names the holder.

    Args:
        otherwise: the alternative to waiting, for the message.

    Raises:
        FolderInUseError: another process holds it; the message names it.
    """
    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(handle, 200, 0).decode(errors="replace").strip() or "just starting"
            raise FolderInUseError(
                f"{folder} is in use by another command ({holder}): wait for its end, or {otherwise}"
            ) from None
        except OSError as problem:
            if problem.errno not in _NO_LOCKS:
                raise
            print(
                f"{folder} cannot be locked here ({problem.strerror}): do not start a second command in it",
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
