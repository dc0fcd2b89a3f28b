# SPDX-License-Identifier: Apache-2.0
"""Examples of conversations: prepared once through Ray Data, or made by the process that needs them."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from redrafter_training.config.job import Job
from redrafter_training.data.conversations import load_conversations
from redrafter_training.data.report import DataReport
from redrafter_training.data.tokenize import Example, ExampleEncoder, encode_all
from redrafter_training.target.properties import read_facts
from redrafter_vllm.utils.install import install_training

FORMAT = 3  # version of the file of examples
LARGE = 256 << 20  # bytes of a file that take one process minutes to tokenise


def examples_file(job: Job, window: int, inputs: Mapping[str, Any]) -> Path:
    """The file for a job's prepared examples in its run folder, by tokenizer, data and template; it need not exist.

    Args:
        inputs: see `input_fingerprints`.
    """
    contents = [inputs["target"]["tokenizer"], inputs["data"], inputs["chat_template"]]
    made_from = [FORMAT, *contents, window, *job.choices.items()]
    name = hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:12]
    return job.run_folder / f"examples-{name}.parquet"


def wants_ray(job: Job) -> bool:
    """Whether a job's conversations are ingested through Ray Data."""
    if job.ingest != "auto":
        return job.ingest == "ray"
    path = Path(job.data).expanduser()
    return job.on_ray or (path.is_file() and path.stat().st_size >= LARGE)


def prepare_examples(job: Job, window: int, inputs: Mapping[str, Any]) -> None:
    """Ingests a job's conversations through Ray Data, if `wants_ray`, unless an earlier start of the run has done so.

    Raises:
        DataError: the data cannot be used.
        ValueError: Ray is missing.
    """
    path = examples_file(job, window, inputs)
    if not job.resume:
        path.unlink(missing_ok=True)
    if path.is_file() or not wants_ray(job):
        return
    try:
        from redrafter_training.data.ray_ingest import ingest, session
    except ImportError as problem:
        if job.ingest == "auto":
            return
        raise ValueError(f"--ingest ray needs Ray: {install_training()} ({problem})") from None
    job = job.absolute()
    with session():
        choice = {"config": job.data_config, "split": job.data_split}
        ingest(job.data, job_encoder(job, window), path, keep_evaluation=job.evaluation_prompts == "keep", **choice)


def job_encoder(job: Job, window: int) -> ExampleEncoder:
    """The encoder of a job's conversations."""
    return ExampleEncoder(
        AutoTokenizer.from_pretrained(job.target, trust_remote_code=job.trust_remote_code),
        window,
        job.chat_template,
        job.chat_template_kwargs,
        read_facts(job.target, trust_remote_code=job.trust_remote_code).vocab_size,
    )


def load_examples(
    path: Path | None,
    source: str,
    encoder: ExampleEncoder,
    *,
    config: str | None = None,
    split: str | None = None,
    keep_evaluation: bool = False,
    quiet: bool,
) -> tuple[list[Example], DataReport]:
    """The examples of `source`, from the file at `path` or, if there is none, made here: the same ones.

    Raises:
        DataError: the data cannot be used.
    """
    if path is not None and path.is_file():
        from redrafter_training.data.example_store import read_store

        return read_store(path)
    conversations, report = load_conversations([source], config=config, split=split, keep_evaluation=keep_evaluation)
    examples = encode_all(conversations, encoder, report, quiet=quiet)
    return examples, report
