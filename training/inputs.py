# SPDX-License-Identifier: Apache-2.0
"""What a training is made from, by content.

The same data in another place is the same, and other data in the same place is not.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from training.answer_store import is_regenerated
from training.cached_target import target_fingerprint
from training.config import DistillConfig
from training.corpus import corpus_root, is_source_code, source_files
from training.data_report import DataError
from training.job import Job
from training.sources import load_rows, read_records

# Of a folder, those files that are read; other files beside them may change.
ANSWERS = ("regenerated.json", "shard-*.jsonl")
DRAFTER = ("config.json", "*.safetensors")
TOKENIZER = ("tokenizer*", "vocab*", "merges*", "special_tokens_map*", "added_tokens*", "chat_template*")


def input_fingerprints(job: Job, config: DistillConfig) -> dict[str, Any]:
    """A fingerprint of each input, by the names in `resume.INPUTS`; None of what is not given.

    Local files are read in full, but for the target's weights, of which samples are.

    Raises:
        DataError: the data or answers cannot be read.
        OSError: another file cannot be read.
    """
    template = job.chat_template
    return {
        "target": target_fingerprint(job.target),
        "tokenizer": _folder(Path(job.target), TOKENIZER) if Path(job.target).is_dir() else None,
        "data": data_fingerprint(job.data),
        "chat_template": _digest([Path(template)]) if template and Path(template).is_file() else template,
        "init_from": _folder(job.init_from, DRAFTER) if job.init_from else None,
        "folders": [_folder(Path(folder), ANSWERS) for folder in config.responses.folders],
    }


def data_fingerprint(data: str) -> str:
    """Of all that a training on `data` could read; of a data set on the hub the library's own, by its revision.

    Raises:
        DataError: `data` names nothing, or a file of it cannot be read.
    """
    path = Path(data)
    try:
        if is_regenerated(data):
            return _folder(path, ANSWERS)
        if is_source_code(data):
            root, files = source_files(corpus_root(data))
            return _digest(files, root)
        if path.is_dir():
            return _folder(path, ("**/*",))
        if path.is_file():
            return _digest([path])
    except OSError as problem:
        raise DataError(f"{data} cannot be read: {problem}") from None
    read_records(data)  # tells a file that is missing from a data set's name
    return str(load_rows(data, None, "train")._fingerprint)


def _folder(folder: Path, patterns: Iterable[str]) -> str:
    return _digest(sorted({path for pattern in patterns for path in folder.glob(pattern)}), folder)


def _digest(files: Iterable[Path], root: Path | None = None) -> str:
    """Of the files' contents and, below `root`, of their names."""
    digest = hashlib.sha256()
    for path in files:
        if path.is_file():
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            digest.update(f"{path.relative_to(root).as_posix() if root else ''} {content}\n".encode())
    return digest.hexdigest()[:32]
