# SPDX-License-Identifier: Apache-2.0
"""The folder of a run: known for ours by a file that names the run, and filled by one command at a time."""

import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from redrafter_training.utils.folder_lock import LOCK, locked
from redrafter_vllm.utils.atomic import write_text
from redrafter_vllm.utils.paths import PlaceError, check_writable

RUN_FILE = "run.json"
KEYS_FILE = "config.yaml"


def check_run_folder(folder: Path) -> None:
    """Raises PlaceError unless `folder` is one of a run, or can be made into one; leaves nothing there."""
    check_writable(folder)
    names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    if RUN_FILE not in names and (others := sorted(set(names) - {LOCK})):
        raise PlaceError(
            f"{folder} holds something else than a run of this version ({', '.join(others[:3])}), which could be "
            "overwritten: choose another --run-dir"
        )


def run_name(folder: Path) -> str | None:
    """What the exported drafter of the run in `folder` bears, to be told from those of other runs."""
    try:
        name = json.loads((folder / RUN_FILE).read_text())["run"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return name if isinstance(name, str) else None


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Makes the folder of a run, and keeps other commands out of it.

    Raises:
        FolderInUseError: another training is in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, "choose another --run-dir"):
        if run_name(folder) is None:
            give_name(folder)
        yield


def give_name(folder: Path) -> None:
    """Makes `folder` that of a new run. A run that starts over in its folder is the same one: its drafter may go."""
    write_text(folder / RUN_FILE, json.dumps({"run": secrets.token_hex(8)}) + "\n")
