# SPDX-License-Identifier: Apache-2.0
"""The folder of a regeneration: a manifest of how it is made, and shards that are either whole or not there.

Each line of a shard is an `TaskResult` as JSON. A file is written under another name, flushed, and put in its place at
once; what a kill leaves under the other name is never read.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from redrafter_training.data.report import DataError, Reason
from redrafter_training.responses.records import Answer, TaskResult
from redrafter_training.utils.fingerprint import differences
from redrafter_training.utils.folder_lock import LOCK, locked
from redrafter_vllm.utils import strict_json

MANIFEST = "regenerated.json"
WRITING = ".writing"


class StoreError(ValueError):
    """The folder cannot take or give these answers."""


class StoreWriteError(OSError):
    """A file of the folder could not be written; the finished shards are intact."""


def is_response_folder(data: str) -> bool:
    """Whether `data` is a folder of answers."""
    return (Path(data) / MANIFEST).is_file()


def vocabulary_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """The same for tokenizers whose ids mean the same."""
    return hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()[:16]


class ResponseStore:
    """Shards of answers in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def held(self) -> Iterator[None]:
        """Makes the folder and keeps other commands from filling it.

        Raises:
            FolderInUseError: another one is at it.
            StoreWriteError: the folder cannot be made.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise StoreWriteError(f"{self.folder} cannot be made ({problem.strerror or problem})") from problem
        with locked(self.folder, "choose another --out"):
            yield

    def open(self, settings: Mapping[str, Any], texts: int, shards: int, facts: Mapping[str, Any]) -> None:
        """Makes the folder, or goes on with the one of an earlier start. Only the folder's holder may.

        Raises:
            StoreError: see `check`.
            StoreWriteError: it cannot be written.
        """
        self.check(settings)
        for path in self._entries():
            if path.name.endswith(WRITING):
                path.unlink()
        if not (self.folder / MANIFEST).is_file():
            manifest = {"settings": settings, "texts": texts, "shards": shards, **facts}
            self._put(MANIFEST, strict_json.dumps(manifest, indent=2, default=str) + "\n")

    def check(self, settings: Mapping[str, Any]) -> None:
        """Checks that answers made with `settings` can go into the folder; changes nothing.

        Raises:
            StoreError: the folder holds something else, or answers made with other settings.
        """
        wanted = strict_json.loads(strict_json.dumps(settings))
        if (self.folder / MANIFEST).is_file():
            if changed := differences(self.manifest()["settings"], wanted):
                raise StoreError(
                    f"{self.folder} holds answers made with other settings ({', '.join(changed)}): restore them, or "
                    "choose another --out"
                )
        elif self.folder.exists() and not self.folder.is_dir():
            raise StoreError(f"{self.folder} is not a folder")
        elif any(not path.name.endswith(WRITING) for path in self._entries()):
            raise StoreError(f"{self.folder} holds something else than answers: choose another --out")

    def manifest(self) -> dict[str, Any]:
        """
        Raises:
            StoreError: it cannot be read.
        """
        path = self.folder / MANIFEST
        try:
            found = strict_json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as problem:
            raise StoreError(f"{path} cannot be read ({problem})") from problem
        if not (isinstance(found, dict) and isinstance(found.get("settings"), dict)):
            raise StoreError(f"{path} does not say how the answers were made: make them again in another --out")
        return found

    def has(self, number: int) -> bool:
        return (self.folder / _shard_name(number)).is_file()

    def write(self, number: int, texts: Sequence[TaskResult]) -> None:
        """
        Raises:
            StoreWriteError: the shard could not be written, because the disk is full for instance.
        """
        lines = (json.dumps(asdict(text), ensure_ascii=False, separators=(",", ":")) + "\n" for text in texts)
        self._put(_shard_name(number), "".join(lines))

    def read(self, number: int) -> list[TaskResult]:
        path = self.folder / _shard_name(number)
        try:
            return [_from_json(json.loads(line)) for line in path.read_text().split("\n") if line]
        except (ValueError, KeyError, TypeError) as problem:
            raise StoreError(f"{path} is not a shard of answers ({problem}): remove it and make it again") from problem

    def read_all(self) -> Iterator[TaskResult]:
        """Every text, in order.

        Raises:
            DataError: shards are missing.
        """
        count = self.manifest()["shards"]
        if missing := [number for number in range(count) if not self.has(number)]:
            raise DataError(
                f"{self.folder}: {len(missing)} of {count} shards are not written yet; the command that began them "
                "continues"
            )
        for number in range(count):
            yield from self.read(number)

    def _entries(self) -> list[Path]:
        return sorted(path for path in self.folder.iterdir() if path.name != LOCK) if self.folder.is_dir() else []

    def _put(self, name: str, content: str) -> None:
        scratch = self.folder / (name + WRITING)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with scratch.open("w", encoding="utf-8") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(scratch, self.folder / name)
        except OSError as problem:
            scratch.unlink(missing_ok=True)
            raise StoreWriteError(
                f"{self.folder / name} could not be written ({problem.strerror or problem}); finished shards are "
                "intact: make room there and give the same command again"
            ) from problem


def _shard_name(number: int) -> str:
    return f"shard-{number:05d}.jsonl"


def _from_json(stored: dict[str, Any]) -> TaskResult:
    answers = tuple(
        Answer(tuple(a["prompt_ids"]), tuple(a["answer_ids"]), a["text"], a["ended"]) for a in stored.pop("answers")
    )
    reason = stored.pop("skipped")
    prompts = tuple(stored.pop("prompts", ()))
    return TaskResult(**stored, answers=answers, skipped=Reason(reason) if reason else None, prompts=prompts)
