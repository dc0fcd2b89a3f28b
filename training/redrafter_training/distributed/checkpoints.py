# SPDX-License-Identifier: Apache-2.0
"""Directories of training state that are either complete or not there.

A checkpoint is filled under another name, flushed, and renamed when it is whole; older ones go only after that. Copies
made by others (Ray uploads file by file) are told apart by a manifest of their files' sizes.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

MANIFEST = "complete.json"
PREFIX = "step-"
Write = Callable[[Path], None]


class CheckpointWriteError(OSError):
    """A checkpoint could not be written; the earlier ones are intact."""


def checkpoint_name(step: int) -> str:
    return f"{PREFIX}{step:08d}"


def fill(directory: Path, write: Write) -> None:
    """Lets `write` put its files into `directory`, then adds the manifest and flushes everything to the disk."""
    write(directory)
    sizes = {file.name: file.stat().st_size for file in sorted(directory.iterdir())}
    (directory / MANIFEST).write_text(json.dumps(sizes))
    for path in (*directory.iterdir(), directory):
        flush(path)


def is_complete(directory: Path) -> bool:
    """Whether every file that the manifest lists is there at its full size."""
    try:
        sizes: dict[str, int] = json.loads((directory / MANIFEST).read_text())
        return all((directory / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):  # damaged in whatever way
        return False


def latest(root: Path) -> Path | None:
    """The complete checkpoint of the highest step under `root`."""
    complete = [path for path in root.glob(f"{PREFIX}*") if is_complete(path)]
    return max(complete, key=lambda path: path.name, default=None)


def store(root: Path, step: int, write: Write, *, keep: int = 2) -> Path:
    """Writes the checkpoint of `step` whole or not at all; afterwards only the `keep` newest remain.

    Raises:
        CheckpointWriteError: it could not be written, because the disk is full for instance.
    """
    final = root / checkpoint_name(step)
    scratch = root / f".{final.name}.writing"
    try:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        fill(scratch, write)
        shutil.rmtree(final, ignore_errors=True)  # only ever the same step of a run that was told to start over
        scratch.rename(final)
        flush(root)
    except (OSError, RuntimeError) as problem:  # torch reports a failed write as RuntimeError
        shutil.rmtree(scratch, ignore_errors=True)
        raise CheckpointWriteError(write_failure(step, root, problem)) from problem
    for old in sorted(path for path in root.glob(f"{PREFIX}*") if is_complete(path))[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def write_failure(step: int, where: Path | str, problem: Exception) -> str:
    """What to tell the user."""
    reason = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
    return (
        f"the checkpoint of step {step} could not be written to {where} ({reason}); earlier checkpoints are intact: "
        "make room there and give the same command again"
    )


def flush(path: Path) -> None:
    """Waits until a file's, or a directory's, contents are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
