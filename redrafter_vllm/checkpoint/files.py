# SPDX-License-Identifier: Apache-2.0
"""Finds a checkpoint's files without leaving its directory, and reads them within size limits.

They come from outside and are not trusted: one that is no regular file, is larger than any checkpoint's, or links to a
place outside the directory raises a `CheckpointError`.
"""

import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from redrafter_vllm.checkpoint.errors import (
    CheckpointConfigError,
    CheckpointNotFoundError,
    OutsideCheckpointError,
    PickleCheckpointError,
    UnreadableWeightsError,
)
from redrafter_vllm.utils.messages import listed, shown

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth")
_WEIGHT_STEMS = ("pytorch_model", "model", "drafter")

# Many times the size of a drafter's files, or of a target's that carries one; small enough to read within a second.
MAX_BYTES = {CONFIG_FILE: 4 << 20, INDEX_FILE: 8 << 20}
MAX_HEADER_BYTES = 8 << 20
MAX_DIGITS = 100  # of an integer; the time to parse one grows with the square

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


@dataclass(frozen=True)
class StoredTensor:
    """The header entry of one tensor in a safetensors file."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str  # as safetensors names it


def is_directory(path: Path) -> bool:
    """Whether `path` is a directory; a name that the file system refuses is none."""
    try:
        return path.is_dir()
    except OSError:
        return False


def find_file(directory: Path, name: str) -> Path | None:
    """The regular file `name` of `directory`, None where that name does not exist.

    Links are followed within the directory and, from a snapshot in the hub's cache, to that cache's blobs.

    Raises CheckpointNotFoundError for a broken link and for what is no regular file, and OutsideCheckpointError for
    any other link.
    """
    file = directory / name
    try:
        mode = file.stat().st_mode
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        if isinstance(error, FileNotFoundError) and not file.is_symlink():
            return None
        reason = getattr(error, "strerror", None) or str(error)
        what = "is a broken link" if isinstance(error, FileNotFoundError) else "cannot be reached"
        raise CheckpointNotFoundError(
            f"{directory / listed([name])} {what} ({reason}): copy the file itself there."
        ) from None
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "no regular file")
        raise CheckpointNotFoundError(f"{file} is {kind}, where a file belongs: give a complete checkpoint directory.")
    root, real = Path(os.path.realpath(directory)), Path(os.path.realpath(file))
    if not real.is_relative_to(root) and not any(real.is_relative_to(blobs) for blobs in _hub_blobs(root)):
        raise OutsideCheckpointError(f"{file} is a link out of its directory, to {real}: copy the file itself there.")
    return file


def read_json(directory: Path, name: str) -> dict[str, Any]:
    """Reads the JSON object in the file `name` of `directory`, the config or the index.

    Raises CheckpointNotFoundError, OutsideCheckpointError and, for anything but one plain JSON object,
    CheckpointConfigError.
    """
    file = find_file(directory, name)
    if file is None:
        raise CheckpointNotFoundError(f"{directory} has no {name}: give a complete checkpoint directory.")
    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_BYTES[name] + 1)
        if len(data) > MAX_BYTES[name]:
            raise ValueError(f"it is larger than {MAX_BYTES[name] >> 20} MiB")
        parsed = json.loads(data.decode(), object_pairs_hook=_unique, parse_int=_integer)
    except (ValueError, OSError) as error:
        raise CheckpointConfigError(f"{file} is not readable JSON ({error}): copy it again.") from None
    except RecursionError:
        raise CheckpointConfigError(f"{file} is not readable JSON (it is nested too deep): copy it again.") from None
    if not isinstance(parsed, dict):
        raise CheckpointConfigError(f"{file} holds no JSON object: copy it again.")
    return parsed


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files that make up the checkpoint in `directory`, by the index where there is one."""
    if find_file(directory, INDEX_FILE):
        return _indexed_files(directory)
    if file := find_file(directory, WEIGHTS_FILE):
        return [file]
    others = _names(directory, (".safetensors",))
    if len(others) > 1:
        raise CheckpointNotFoundError(
            f"{directory} holds {len(others)} safetensors files and no {INDEX_FILE} that says which belong together: "
            "add the index, or keep one file."
        )
    if others and (file := find_file(directory, others[0])):
        return [file]
    if pickles := [file.name for file in pickle_files(directory)]:
        raise PickleCheckpointError(
            f"{directory} holds its weights as a pickle ({listed(pickles)}), which may run code when read: if you "
            f"trust it, convert it with `redrafter convert {directory} DST --allow-pickle`."
        )
    raise CheckpointNotFoundError(f"{directory} holds no {WEIGHTS_FILE}: export or copy the drafter's weights there.")


def pickle_files(directory: Path) -> list[Path]:
    """The directory's pickles; only those named like weights if there are such."""
    names = _names(directory, PICKLE_SUFFIXES)
    chosen = [name for name in names if name.startswith(_WEIGHT_STEMS)] or names
    return [file for name in chosen if (file := find_file(directory, name))]


def stored_tensors(file: Path) -> Iterator[StoredTensor]:
    """Every tensor of a safetensors file, from its header. Raises UnreadableWeightsError."""
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
        if length > MAX_HEADER_BYTES:
            raise UnreadableWeightsError(
                f"{file} cannot be read as safetensors (a header of {length} bytes, more than "
                f"{MAX_HEADER_BYTES >> 20} MiB): copy it again."
            )
        with safe_open(file, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118  (not a mapping)
                part = weights.get_slice(name)
                yield StoredTensor(file, name, tuple(part.get_shape()), part.get_dtype())
    except (SafetensorError, OSError) as error:
        raise unreadable(file, error) from None


def unreadable(file: Path, error: Exception) -> UnreadableWeightsError:
    """The error for weights that the library cannot read."""
    return UnreadableWeightsError(f"{file} cannot be read as safetensors ({error}): copy it again.")


def _indexed_files(directory: Path) -> list[Path]:
    index = directory / INDEX_FILE
    weight_map = read_json(directory, INDEX_FILE).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UnreadableWeightsError(f"{index} has no weight_map of tensors to files: copy it again.")
    for name in weight_map.values():
        if not isinstance(name, str):
            raise UnreadableWeightsError(f"{index} names {shown(name)}, expected the name of a file: copy it again.")
        if name != os.path.basename(name) or name in ("", ".", ".."):
            raise OutsideCheckpointError(f"{index} names {shown(name)}, which is no file beside it: copy it again.")
    files = []
    for name in sorted(set(weight_map.values())):
        file = find_file(directory, name)
        if file is None:
            raise CheckpointNotFoundError(f"{index} names {listed([name])}, which is absent: copy it beside the index.")
        files.append(file)
    return files


def _names(directory: Path, suffixes: tuple[str, ...]) -> list[str]:
    try:
        return sorted(name for name in os.listdir(directory) if name.endswith(suffixes))
    except OSError as error:
        raise CheckpointNotFoundError(f"{directory} cannot be listed ({error.strerror}): correct its rights.") from None


def _hub_blobs(root: Path) -> list[Path]:
    """The folders of the hub's cache with the files of the snapshot that `root` is or is in.

    `models--<org>--<name>/snapshots/<revision>/config.json` is a link to `models--<org>--<name>/blobs/<hash>`.
    """
    return [
        parent.parent / "blobs"
        for parent in root.parents
        if parent.name == "snapshots" and parent.parent.name.startswith("models--")
    ]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    parsed = dict(pairs)
    if len(parsed) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"it holds the key {shown(twice)} twice")
    return parsed


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"it holds a number of {len(digits)} digits")
    return int(digits)
