# SPDX-License-Identifier: Apache-2.0
"""Fingerprints of a training's inputs, by content: data may move, but not change, between the starts of a run."""

from pathlib import Path
from typing import Any

from redrafter_training.config.job import Job
from redrafter_training.config.recipe import DistillConfig
from redrafter_training.data.chat_templates import template_fingerprint
from redrafter_training.data.python_corpus import corpus_root, is_source_code, source_files
from redrafter_training.data.records import load_rows, read_records
from redrafter_training.data.report import DataError
from redrafter_training.responses.store import is_response_folder
from redrafter_vllm.checkpoint.fingerprint import (
    file_digest,
    files_fingerprint,
    folder_fingerprint,
    target_fingerprint,
)

# The files of a folder that are read; other files in it may change.
RESPONSES = ("regenerated.json", "shard-*.jsonl")
DRAFTER = ("config.json", "*.safetensors")


def input_fingerprints(job: Job, config: DistillConfig) -> dict[str, Any]:
    """A fingerprint of each input, by the names in `redrafter_training.trainer.state`; None for those not given.

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
    """A fingerprint of the job's data; of a data set on the hub that of the `datasets` library, by its revision.

    Raises:
        DataError: the data does not exist, or a file cannot be read.
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
    read_records(data)  # raises DataError for a missing file, which is not the name of a data set
    splits = (job.data_split, *((job.held_out_split,) if job.held_out_split else ()))
    return " ".join(str(load_rows(data, job.data_config, split)._fingerprint) for split in splits)
