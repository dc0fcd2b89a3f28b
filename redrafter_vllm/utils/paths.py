# SPDX-License-Identifier: Apache-2.0
"""Places that a user names: `~` for the home folder, and folders of drafters that replace nothing else.

What a folder holds decides what may be written there, not how it was named: a link, `..` or a relative path to a
target's folder finds the target's files there, and is refused like the folder itself.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from os import PathLike
from pathlib import Path

from redrafter_vllm.checkpoint.names import MODEL_TYPE
from redrafter_vllm.utils.messages import listed

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PROVENANCE = "training.json"
_SHARDS = "model-*-of-*.safetensors"
_OWN = (CONFIG, WEIGHTS, INDEX, _SHARDS, PROVENANCE)
_SCRATCH = ".saving-"  # also what a kill has left of an unfinished save


class PlaceError(ValueError):
    """A place that cannot be read from or written to as asked."""


def user_path(place: str | PathLike[str]) -> Path:
    """A path as a user gives it, `~` and `~name` replaced by the home folder.

    Raises:
        PlaceError: it is empty, or there is no such home folder.
    """
    if not os.fspath(place):
        raise PlaceError("a path is empty: a variable that is not set, perhaps")
    try:
        return Path(place).expanduser()
    except RuntimeError:
        raise PlaceError(f"{os.fspath(place)}: there is no home folder of that name") from None


def user_place(place: str) -> str:
    """A path or the name of something on the hub, which stays as it is.

    Raises:
        PlaceError: see `user_path`.
    """
    path = user_path(place)
    return str(path) if place.startswith("~") else place


def check_drafter_place(out: Path, *, replace: bool) -> None:
    """Checks that a drafter can be put at `out` without loss; writes nothing.

    Args:
        replace: whether a drafter that is there already may go.

    Raises:
        PlaceError: `out` holds anything but a drafter of ours, or one that is to stay, or cannot be written.
    """
    _check_drafter_place(out, replace=replace, others=False)


def _check_drafter_place(out: Path, *, replace: bool, others: bool) -> None:
    """As `check_drafter_place`; with `others`, there may be files beside the drafter, which stay as they are."""
    check_writable(out)
    out = out.resolve()  # `new/..` is no new folder
    names = sorted(entry.name for entry in out.iterdir()) if out.is_dir() else []
    if not (entries := [name for name in names if not name.startswith(_SCRATCH)]):
        return
    foreign = [] if others else [name for name in entries if not _is_own(name)]
    if foreign or not is_own_config(out / CONFIG):
        foreign = foreign or entries
        raise PlaceError(
            f"{out} holds something else than a drafter ({listed(foreign, 3)}), which would be overwritten: choose "
            "another place for the drafter"
        )
    if not replace:
        raise PlaceError(f"{out} holds a drafter already: choose another place, or replace it with --overwrite")


def check_replaceable(folder: Path) -> None:
    """Raises PlaceError where files of a drafter, written to `folder`, would replace those of something else."""
    there = [name for name in (CONFIG, WEIGHTS, INDEX) if (folder / name).exists()]
    if there and not is_own_config(folder / CONFIG):
        raise PlaceError(
            f"{folder} holds {listed(there)} of something else than a drafter, which would be overwritten: choose "
            "another place for the drafter"
        )


def is_own_config(file: Path) -> bool:
    """Whether `file` describes a drafter that has its folder to itself: not a target, and none inside of one."""
    try:
        described = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(described, dict) and described.get("model_type") == MODEL_TYPE


def check_writable(place: Path) -> None:
    """Raises PlaceError unless `place`, which may not exist yet, can be made or written to; leaves nothing there."""
    folder = existing_folder(place)
    try:
        with tempfile.TemporaryFile(dir=folder):
            return
    except OSError as problem:
        raise PlaceError(
            f"{place} cannot be written to ({problem.strerror or problem} in {folder}): choose another place"
        ) from None


def existing_folder(place: Path) -> Path:
    """`place`, or the folder that it would be made in; links and `..` resolved.

    Raises:
        PlaceError: a file stands where a folder is needed, or the path is none.
    """
    try:
        if place.is_symlink() and not place.exists():
            raise PlaceError(f"{place} is a link to nothing: remove it, or choose another place")
        folder = place.resolve()
        while not folder.exists():
            folder = folder.parent
        is_folder = folder.is_dir()
    except (OSError, RuntimeError) as problem:  # a name too long, links in a circle
        raise PlaceError(f"{str(place)[:200]} cannot be used as a place ({problem}): choose another") from None
    if not is_folder:
        raise PlaceError(f"{place} cannot be made into a folder, as {folder} is a file: choose another place")
    return folder


@contextmanager
def drafter_folder(out: Path, *, replace: bool) -> Iterator[Path]:
    """A folder to write a drafter to, which becomes `out` if all goes well and goes away otherwise.

    A new folder appears whole. In an existing one the files are replaced one by one, each whole, the weights before
    the config that describes them: who reads in that moment gets the old drafter, the new one, or a mismatch that
    loading refuses. Files of the old drafter that the new one lacks go, other files stay.

    Raises:
        PlaceError: as `check_drafter_place`, but for files that lie beside a drafter.
    """
    _check_drafter_place(out, replace=replace, others=True)
    out = out.resolve()
    # Beside what it becomes: renaming does not leave a file system, and the folder's own may be a mounted disk.
    beside = out if out.exists() else out.parent
    beside.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=beside, prefix=_SCRATCH) as scratch:
        made = Path(scratch, out.name)
        made.mkdir()
        yield made
        _check_drafter_place(out, replace=replace, others=True)  # minutes may have passed
        for file in made.iterdir():
            _flush(file)
        if not out.exists():
            made.rename(out)
            return
        _replace_files(made, out)


def _replace_files(made: Path, out: Path) -> None:
    new = {file.name for file in made.iterdir()}
    order = (WEIGHTS, INDEX, CONFIG)
    for name in sorted(new | {INDEX}, key=lambda name: (order.index(name) if name in order else len(order), name)):
        if name in new:
            os.replace(made / name, out / name)
        else:
            (out / name).unlink(missing_ok=True)  # an old index would send readers to older shards
    for file in out.iterdir():
        if file.name not in new and fnmatch(file.name, _SHARDS):
            file.unlink()


def _is_own(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in _OWN)


def _flush(file: Path) -> None:
    with file.open("rb") as handle:
        os.fsync(handle.fileno())


def free_space(folder: Path) -> int:
    """Bytes free where `folder` is, or will be."""
    return shutil.disk_usage(existing_folder(folder)).free
