# SPDX-License-Identifier: Apache-2.0
"""Which files of a local folder a training reads, and which it passes over."""

from collections.abc import Iterable
from pathlib import Path

from redrafter_training.data.python_corpus import corpus_root, is_source_code, source_files
from redrafter_training.data.records import DATA_SUFFIXES, data_set_files
from redrafter_training.responses.store import is_response_folder

NAMED = 5  # files named of those passed over


def passed_over(data: str, *, config: str | None = None, splits: Iterable[str | None] = (None,)) -> str | None:
    """A line about files in the folder `data` that might be data and are not read; None where there are none.

    Raises:
        DataError: the folder holds a data set that cannot be read.
    """
    folder = Path(data).expanduser()
    if not folder.is_dir() or is_response_folder(data):
        return None
    code = is_source_code(data)
    if code:
        taken = set(source_files(corpus_root(data))[1])
    else:
        taken = {path for split in splits for path in data_set_files(data, config, split)}
    left = [path for path in _candidates(folder) if path not in taken]
    if not left:
        return None
    names = ", ".join(path.relative_to(folder).as_posix() for path in left[:NAMED])
    more = f" and {len(left) - NAMED} more" if len(left) > NAMED else ""
    kind = "Python source" if code else "data set"
    return f"{data} is read as a {kind}: {len(taken)} files are taken, {len(left)} are not ({names}{more})"


def _candidates(folder: Path) -> list[Path]:
    """Python sources and data files, without those in hidden folders."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() in (".py", *DATA_SUFFIXES) and path.is_file())
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))
