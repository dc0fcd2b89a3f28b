# SPDX-License-Identifier: Apache-2.0
"""Response generation from its prompts to the stored shards."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tqdm import tqdm

from redrafter_training.data.chat_templates import template_fingerprint
from redrafter_training.data.report import DataError, DataReport, UnusableRecord
from redrafter_training.responses.config import ResponseJob
from redrafter_training.responses.prompts import fingerprint, load_tasks
from redrafter_training.responses.ray_workers import Crew, Shard, generate_here, generate_on_ray
from redrafter_training.responses.records import Task, TaskResult
from redrafter_training.responses.store import ResponseStore, vocabulary_fingerprint
from redrafter_training.responses.vllm_engine import load_tokenizer, make_generator
from redrafter_training.run.data_summary import ignored_files
from redrafter_training.run.prompt_invention import invention_facts
from redrafter_training.utils.provenance import provenance
from redrafter_vllm.checkpoint.fingerprint import target_fingerprint
from redrafter_vllm.utils.install import install_training


@dataclass
class Summary:
    """What the folder holds, and what this start has added."""

    report: DataReport  # of the data's records, then also of the texts
    texts: int = 0
    responses: int = 0
    tokens: int = 0
    cut: int = 0
    left_out: int = 0
    finished_before: int = 0
    shards: int = 0
    new_tokens: int = 0
    seconds: float = 0.0

    def add(self, result: TaskResult) -> None:
        if result.skipped is not None:
            self.report.reject(result.where, UnusableRecord(result.skipped, result.detail))
            return
        self.texts += 1
        self.responses += len(result.responses)
        self.tokens += result.tokens
        self.cut += not result.responses[-1].ended
        self.left_out += result.left_out

    def __str__(self) -> str:
        speed = f"{self.new_tokens / self.seconds:,.0f} tokens/s" if self.new_tokens and self.seconds else "none now"
        return "\n".join(
            (
                str(self.report),
                f"{self.texts:,} texts with {self.responses:,} responses of {self.tokens:,} tokens",
                f"  {self.cut:,} cut by the window or for repeating themselves; {self.left_out:,} later responses of "
                "conversations left out",
                f"  {self.shards} shards, {self.finished_before} of them finished before; {self.new_tokens:,} tokens "
                f"in {self.seconds:,.0f} s with the engine's start: {speed}",
            )
        )


def generate_responses(job: ResponseJob) -> Summary:
    """Generates all shards that the folder does not hold yet.

    Raises:
        DataError: the data or the target cannot be used.
        ResponseStoreError: the folder holds something else, or responses generated with other settings.
        ResponseWriteError: a shard could not be written; the finished ones are intact.
        FolderInUseError: another command is writing to the folder.
        WorkersFailedError: Ray's workers failed.
    """
    tokenizer = load_tokenizer(job, job.window, "--window")
    tasks, report = load_tasks(job, tokenizer)
    if report.skipped:
        print(report)
    splits = (job.data_split, *((job.held_out_split,) if job.held_out_split else ()))
    if note := ignored_files(job.data, config=job.data_config, splits=splits):
        print(note)
    store = ResponseStore(job.out)
    shards = cut_shards(tasks, job.shard_size)
    settings = job.identity() | {
        "target_content": target_fingerprint(job.target),
        "chat_template": template_fingerprint(job.chat_template),
        "prompts": fingerprint(tasks),
        "vocabulary": vocabulary_fingerprint(tokenizer),
    }
    facts = {"records": {"used": report.used, "skipped": report.skipped}} | provenance("redrafter_training.respond")
    if (invented := invention_facts(Path(job.data))) is not None:
        facts["invented"] = invented
    store.check(settings)
    with store.held():
        store.open(settings, len(tasks), len(shards), facts)
        pending = [shard for shard in shards if not store.has(shard.number)]
        summary = Summary(report, finished_before=len(shards) - len(pending), shards=len(shards))
        if pending:
            _write(job, store, pending, len(tasks), summary)
    report.used = len(tasks)
    for result in store.read_all():
        summary.add(result)
    return summary


def cut_shards(tasks: Sequence[Task], size: int) -> list[Shard]:
    """The tasks in order, `size` to a shard."""
    return [Shard(n, tuple(tasks[first : first + size])) for n, first in enumerate(range(0, len(tasks), size))]


def _write(job: ResponseJob, store: ResponseStore, pending: list[Shard], texts: int, summary: Summary) -> None:
    missing = sum(len(shard.tasks) for shard in pending)
    generated = _generated(job, pending)
    started = time.monotonic()
    with tqdm(total=texts, initial=texts - missing, desc="responses", unit="text") as bar:
        for number, results in generated:
            store.write(number, results)
            summary.new_tokens += sum(result.tokens for result in results)
            summary.seconds = time.monotonic() - started
            bar.set_postfix_str(f"{summary.new_tokens / summary.seconds:,.0f} tokens/s", refresh=False)
            bar.update(len(results))


def _generated(job: ResponseJob, pending: list[Shard]) -> Iterator[tuple[int, list[TaskResult]]]:
    texts = sum(len(shard.tasks) for shard in pending)
    if not job.on_ray:
        return generate_here(partial(make_generator, job, texts), pending)
    try:
        from redrafter_training.distributed.ray_train import connect, has_gpus
    except ImportError as problem:
        raise DataError(f"several workers need Ray: {install_training()} ({problem})") from None
    connect(job.ray_address, num_cpus=job.num_workers)
    on_cuda = job.device == "cuda" or (job.device == "auto" and has_gpus(job.num_workers * job.gpus_per_worker))
    crew = Crew(job.num_workers, job.gpus_per_worker if on_cuda else 0, job.max_failures)
    return generate_on_ray(partial(make_generator, job.absolute(), texts), pending, crew)
