# SPDX-License-Identifier: Apache-2.0
"""Paths that a user gives: `~` for the home folder, and whether they can be written to."""

import os
import shutil
import tempfile
from os import PathLike
from pathlib import Path


class PlaceError(ValueError):
    """A path that cannot be read from or written to."""


def user_path(place: str | PathLike[str]) -> Path:
    """A path given by a user, with `~` and `~name` replaced by the home folder.

    Raises:
        PlaceError: It is empty, or there is no such home folder.
    """
    if not os.fspath(place):
        raise PlaceError("a path is empty: perhaps a variable is not set")
    try:
        return Path(place).expanduser()
    except RuntimeError:
        raise PlaceError(f"{os.fspath(place)}: there is no home folder of that name") from None


def user_place(place: str) -> str:
    """A path with `~` replaced, or a hub id, which is returned unchanged.

    Raises:
        PlaceError: See `user_path`.
    """
    path = user_path(place)
    return str(path) if place.startswith("~") else place


def check_writable(place: Path) -> None:
    """Raises PlaceError unless `place`, which may not exist yet, can be created or written to; leaves no file there."""
    folder = existing_folder(place)
    try:
        with tempfile.TemporaryFile(dir=folder):
            return
    except OSError as problem:
        raise PlaceError(
            f"{place} cannot be written to ({problem.strerror or problem} in {folder}): choose another place"
        ) from None


def check_file(file: Path, *, overwrite: bool | None = None) -> None:
    """Raises PlaceError unless `file` can be written.

    Args:
        overwrite: Whether one that exists may be replaced; None where the command has no such option.
    """
    if file.is_dir():
        raise PlaceError(f"{file} is a folder: give the name of a file")
    if file.exists() and not overwrite:
        option = "" if overwrite is None else ", or add --overwrite"
        raise PlaceError(f"{file} exists already, and is not overwritten: choose another name{option}")
    check_writable(file.parent if file.exists() else file)


def existing_folder(place: Path) -> Path:
    """`place`, or the folder that it would be made in; links and `..` resolved.

    Raises:
        PlaceError: There is a file where a folder is needed, or the path cannot exist.
    """
    try:
        if place.is_symlink() and not place.exists():
            raise PlaceError(f"{place} is a broken link: remove it, or choose another place")
        folder = place.resolve()
        while not folder.exists():
            folder = folder.parent
        is_folder = folder.is_dir()
    except (OSError, RuntimeError) as problem:  # a name too long, links in a circle
        raise PlaceError(f"{str(place)[:200]} cannot be used as a place ({problem}): choose another") from None
    if not is_folder:
        raise PlaceError(f"{place} cannot be made into a folder, as {folder} is a file: choose another place")
    return folder


def free_space(folder: Path) -> int:
    """Bytes free where `folder` is, or will be."""
    return shutil.disk_usage(existing_folder(folder)).free
