# SPDX-License-Identifier: Apache-2.0
"""Folders that a drafter is written to, so that it replaces nothing but a drafter.

What a folder holds decides what may be written there, not how it was named: a link, `..` or a relative path to a
target's folder finds the target's files there, and is refused like the folder itself.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from redrafter_vllm.checkpoint.files import CONFIG_FILE, INDEX_FILE, WEIGHTS_FILE
from redrafter_vllm.checkpoint.names import MODEL_TYPE
from redrafter_vllm.utils import strict_json
from redrafter_vllm.utils.atomic import is_unfinished, move_flushed, temporary_folder
from redrafter_vllm.utils.messages import listed
from redrafter_vllm.utils.paths import PlaceError, check_writable

PROVENANCE_FILE = "training.json"
CARD_FILE = "README.md"
CARD_MARK = "<!-- written with the drafter; without this line, the card stays when the drafter is replaced -->"
_SHARDS = "model-*-of-*.safetensors"
OWN_FILES = (CONFIG_FILE, WEIGHTS_FILE, INDEX_FILE, _SHARDS, PROVENANCE_FILE, CARD_FILE)


def check_drafter_place(out: Path, *, replace: bool) -> None:
    """Checks that writing a drafter to `out` would overwrite nothing else; writes nothing.

    Args:
        replace: Whether a drafter that is already there may be replaced.

    Raises:
        PlaceError: `out` holds something else than a drafter, or a drafter without `replace`, or cannot be written.
    """
    _check_drafter_place(out, replace=replace, others=False)


def _check_drafter_place(out: Path, *, replace: bool, others: bool) -> None:
    """As `check_drafter_place`; with `others`, other files may lie beside the drafter."""
    check_writable(out)
    out = out.resolve()  # `new/..` is no new folder
    names = sorted(entry.name for entry in out.iterdir()) if out.is_dir() else []
    if not (entries := [name for name in names if not is_unfinished(name)]):
        return
    foreign = [] if others else [name for name in entries if not _is_own(name)]
    if foreign or not is_drafter_config(out / CONFIG_FILE):
        foreign = foreign or entries
        raise PlaceError(
            f"{out} holds something else than a drafter ({listed(foreign, 3)}), which would be overwritten: choose "
            "another place for the drafter"
        )
    if not replace:
        raise PlaceError(f"{out} holds a drafter already: choose another place, or replace it with --overwrite")


def read_provenance(folder: Path) -> dict[str, Any]:
    """The report of the training beside a drafter; empty where there is none that can be read."""
    try:
        found = strict_json.loads((folder / PROVENANCE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def check_replaceable(folder: Path) -> None:
    """Raises PlaceError where files of a drafter, written to `folder`, would replace those of something else."""
    there = [name for name in (CONFIG_FILE, WEIGHTS_FILE, INDEX_FILE) if (folder / name).exists()]
    if there and not is_drafter_config(folder / CONFIG_FILE):
        raise PlaceError(
            f"{folder} holds {listed(there)} of something else than a drafter, which would be overwritten: choose "
            "another place for the drafter"
        )


def is_drafter_config(file: Path) -> bool:
    """Whether `file` is the config of a drafter in a separate folder, not of a target or of a drafter inside one."""
    try:
        described = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(described, dict) and described.get("model_type") == MODEL_TYPE


def has_own_card(folder: Path) -> bool:
    """Whether the card in `folder` is the user's own, which nothing replaces."""
    try:
        return CARD_MARK not in (folder / CARD_FILE).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False


@contextmanager
def drafter_folder(out: Path, *, replace: bool) -> Iterator[Path]:
    """A temporary folder to write a drafter to, which becomes `out` when the block ends without an error.

    A new folder appears atomically. In an existing one the files are replaced as `replaced_files` does it, shards of
    the old drafter are deleted, and other files stay, a card of the user's own among them.

    Raises:
        PlaceError: as `check_drafter_place`, but other files may lie beside a drafter.
    """
    _check_drafter_place(out, replace=replace, others=True)
    out = out.resolve()
    # Renaming works only within a file system, and `out` itself may be a mounted one.
    beside = out if out.exists() else out.parent
    beside.mkdir(parents=True, exist_ok=True)
    with temporary_folder(beside, out.name) as made:
        yield made
        _check_drafter_place(out, replace=replace, others=True)  # minutes may have passed
        if not out.exists():
            move_flushed(made, out)
            return
        new = {file.name for file in made.iterdir()}
        _replace_files(made, out)
        for file in out.iterdir():
            if file.name not in new and fnmatch(file.name, _SHARDS):
                file.unlink()


@contextmanager
def replaced_files(folder: Path) -> Iterator[Path]:
    """A temporary folder whose files replace those of the drafter in `folder` when the block ends without an error.

    Each file is replaced atomically, the weights before the config that describes them: a reader in between gets the
    old drafter, the new one, or a mismatch that loading refuses.

    Raises:
        PlaceError: see `check_replaceable`.
    """
    check_replaceable(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with temporary_folder(folder, folder.name) as made:
        yield made
        _replace_files(made, folder)


def _replace_files(made: Path, folder: Path) -> None:
    if has_own_card(folder):
        (made / CARD_FILE).unlink(missing_ok=True)
    new = {file.name for file in made.iterdir()}
    order = (WEIGHTS_FILE, INDEX_FILE, CONFIG_FILE)
    names = new | {INDEX_FILE}
    for name in sorted(names, key=lambda name: (order.index(name) if name in order else len(order), name)):
        if name in new:
            move_flushed(made / name, folder / name)
        else:
            (folder / name).unlink(missing_ok=True)  # an old index would send readers to older shards


def _is_own(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in OWN_FILES)
