# SPDX-License-Identifier: Apache-2.0
"""Directories of training state, written atomically.

Older checkpoints are deleted only after a new one is complete. Copies that others make, such as Ray, which uploads file
by file, are checked against a manifest of the files' sizes.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from redrafter_vllm.utils.atomic import move_flushed, remove_unfinished, temporary_folder

MANIFEST = "complete.json"
PREFIX = "step-"
Write = Callable[[Path], None]


class CheckpointWriteError(OSError):
    """A checkpoint could not be written; the earlier ones are intact."""


def checkpoint_name(step: int) -> str:
    return f"{PREFIX}{step:08d}"


def fill(directory: Path, write: Write) -> None:
    """Lets `write` put its files into `directory`, then adds the manifest."""
    write(directory)
    sizes = {file.name: file.stat().st_size for file in sorted(directory.iterdir())}
    (directory / MANIFEST).write_text(json.dumps(sizes))


def is_complete(directory: Path) -> bool:
    """Whether every file that the manifest lists is there at its full size."""
    try:
        sizes: dict[str, int] = json.loads((directory / MANIFEST).read_text())
        return all((directory / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return False


def latest(root: Path) -> Path | None:
    """The complete checkpoint of the highest step under `root`."""
    complete = [path for path in root.glob(f"{PREFIX}*") if is_complete(path)]
    return max(complete, key=lambda path: path.name, default=None)


def store(root: Path, step: int, write: Write, *, keep: int = 2) -> Path:
    """Writes the checkpoint of `step` atomically, then deletes all but the `keep` newest.

    Raises:
        CheckpointWriteError: it could not be written, because the disk is full for instance.
    """
    final = root / checkpoint_name(step)
    try:
        root.mkdir(parents=True, exist_ok=True)
        remove_unfinished(root)
        with temporary_folder(root, final.name) as made:
            fill(made, write)
            shutil.rmtree(final, ignore_errors=True)  # the same step of a run that starts over
            move_flushed(made, final)
    except (OSError, RuntimeError) as problem:  # torch reports a failed write as RuntimeError
        raise CheckpointWriteError(write_failure(step, root, problem)) from problem
    for old in sorted(path for path in root.glob(f"{PREFIX}*") if is_complete(path))[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def write_failure(step: int, where: Path | str, problem: Exception) -> str:
    """The message for the user."""
    reason = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
    return (
        f"the checkpoint of step {step} could not be written to {where} ({reason}); earlier checkpoints are intact: "
        "make room there and give the same command again"
    )
