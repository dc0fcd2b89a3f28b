# SPDX-License-Identifier: Apache-2.0
"""The folder of a run: recognised by a file with the run's name, and used by one command at a time."""

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
    """Raises PlaceError unless `folder` belongs to a run, or can be used for one; writes nothing."""
    check_writable(folder)
    names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    if RUN_FILE not in names and (others := sorted(set(names) - {LOCK})):
        raise PlaceError(
            f"{folder} contains files that do not belong to a run of this version ({', '.join(others[:3])}), which "
            "could be overwritten: choose another --run-dir"
        )


def run_name(folder: Path) -> str | None:
    """The name of the run in `folder`, which its exported drafter stores too; None if there is none."""
    try:
        name = json.loads((folder / RUN_FILE).read_text())["run"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return name if isinstance(name, str) else None


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Makes the folder of a run and locks it.

    Raises:
        FolderInUseError: another training uses it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, "choose another --run-dir"):
        if run_name(folder) is None:
            give_name(folder)
        yield


def give_name(folder: Path) -> None:
    """Names the run of a new folder. A run that starts over keeps its name, and so may replace its drafter."""
    write_text(folder / RUN_FILE, json.dumps({"run": secrets.token_hex(8)}) + "\n")
