# SPDX-License-Identifier: Apache-2.0
"""What a training is made from, by content.

The same data in another place is the same, and other data in the same place is not.
"""

from pathlib import Path
from typing import Any

from redrafter_training.config.job import Job
from redrafter_training.config.recipe import DistillConfig
from redrafter_training.data.chat_templates import template_fingerprint
from redrafter_training.data.python_corpus import corpus_root, is_source_code, source_files
from redrafter_training.data.records import load_rows, read_records
from redrafter_training.data.report import DataError
from redrafter_training.responses.store import is_response_folder
from redrafter_training.utils.fingerprint import (
    file_digest,
    files_fingerprint,
    folder_fingerprint,
    target_fingerprint,
)

# Of a folder, those files that are read; other files beside them may change.
RESPONSES = ("regenerated.json", "shard-*.jsonl")
DRAFTER = ("config.json", "*.safetensors")


def input_fingerprints(job: Job, config: DistillConfig) -> dict[str, Any]:
    """A fingerprint of each input, by the names in `resume.INPUTS`; None of what is not given.

    Raises:
        DataError: the data or responses cannot be read.
        OSError: another file cannot be read.
    """
    return {
        "target": target_fingerprint(job.target),
        "data": data_fingerprint(job),
        "chat_template": template_fingerprint(job.chat_template),
        "init_from": folder_fingerprint(job.init_from, DRAFTER) if job.init_from else None,
        "folders": [folder_fingerprint(Path(folder), RESPONSES) for folder in config.responses.folders],
    }


def data_fingerprint(job: Job) -> str:
    """Of all that a training on the job's data could read; of a data set on the hub the library's own, by its revision.

    Raises:
        DataError: it names nothing, or a file of it cannot be read.
    """
    data, path = job.data, Path(job.data)
    try:
        if is_response_folder(data):
            return folder_fingerprint(path, RESPONSES)
        if is_source_code(data):
            root, files = source_files(corpus_root(data))
            return files_fingerprint(files, root)
        if path.is_dir():
            return folder_fingerprint(path, ("**/*",))
        if path.is_file():
            return file_digest(path)
    except OSError as problem:
        raise DataError(f"{data} cannot be read: {problem}") from None
    read_records(data)  # tells a file that is missing from a data set's name
    splits = (job.data_split, *((job.held_out_split,) if job.held_out_split else ()))
    return " ".join(str(load_rows(data, job.data_config, split)._fingerprint) for split in splits)
