# SPDX-License-Identifier: Apache-2.0
"""A folder of responses: a manifest of how they are generated, and shards, each written atomically.

Each line of a shard is a `TaskResult` as JSON.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from redrafter_training.data.report import DataError
from redrafter_training.responses.records import TaskResult
from redrafter_training.utils.differences import differences
from redrafter_training.utils.folder_lock import LOCK, locked
from redrafter_vllm.utils import strict_json
from redrafter_vllm.utils.atomic import is_unfinished, remove_unfinished, write_text

MANIFEST = "regenerated.json"


class ResponseStoreError(ValueError):
    """The folder cannot take or give these responses."""


class ResponseWriteError(OSError):
    """A file of the folder could not be written; the finished shards are intact."""


def is_response_folder(data: str) -> bool:
    """Whether `data` is a folder of responses."""
    return (Path(data) / MANIFEST).is_file()


def vocabulary_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """The same for tokenizers whose ids mean the same."""
    return hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()[:16]


class ResponseStore:
    """Shards of responses in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def held(self) -> Iterator[None]:
        """Makes the folder and keeps other commands from writing to it.

        Raises:
            FolderInUseError: another command holds it.
            ResponseWriteError: the folder cannot be made.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise ResponseWriteError(f"{self.folder} cannot be made ({problem.strerror or problem})") from problem
        with locked(self.folder, "choose another --out"):
            yield

    def open(self, settings: Mapping[str, Any], texts: int, shards: int, facts: Mapping[str, Any]) -> None:
        """Makes the folder, or continues the one of an earlier start. Only for the process that holds the folder.

        Raises:
            ResponseStoreError: see `check`.
            ResponseWriteError: it cannot be written.
        """
        self.check(settings)
        if self.folder.is_dir():
            remove_unfinished(self.folder)
        if not (self.folder / MANIFEST).is_file():
            manifest = {"settings": settings, "texts": texts, "shards": shards, **facts}
            self._put(MANIFEST, strict_json.dumps(manifest, indent=2, default=str) + "\n")

    def check(self, settings: Mapping[str, Any]) -> None:
        """Checks that responses generated with `settings` can go into the folder; changes nothing.

        Raises:
            ResponseStoreError: the folder holds something else, or responses generated with other settings.
        """
        wanted = strict_json.loads(strict_json.dumps(settings))
        if (self.folder / MANIFEST).is_file():
            if changed := differences(self.manifest()["settings"], wanted):
                raise ResponseStoreError(
                    f"{self.folder} holds responses generated with other settings ({', '.join(changed)}): restore "
                    "them, or choose another --out"
                )
        elif self.folder.exists() and not self.folder.is_dir():
            raise ResponseStoreError(f"{self.folder} is not a folder")
        elif self.folder.is_dir() and any(
            path.name != LOCK and not is_unfinished(path.name) for path in self.folder.iterdir()
        ):
            raise ResponseStoreError(f"{self.folder} holds something else than responses: choose another --out")

    def manifest(self) -> dict[str, Any]:
        """
        Raises:
            ResponseStoreError: it cannot be read.
        """
        path = self.folder / MANIFEST
        try:
            found = strict_json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as problem:
            raise ResponseStoreError(f"{path} cannot be read ({problem})") from problem
        if not (isinstance(found, dict) and isinstance(found.get("settings"), dict)):
            raise ResponseStoreError(
                f"{path} does not say how the responses were generated: generate them again in another --out"
            )
        return found

    def commands(self) -> list[str]:
        """The commands that the responses and, if they were invented, the prompts were generated with, in order."""
        manifest = self.manifest()
        found = (manifest.get("invented") or {}).get("command"), manifest.get("command")
        return [command for command in found if isinstance(command, str)]

    def has(self, number: int) -> bool:
        return (self.folder / _shard_name(number)).is_file()

    def write(self, number: int, results: Sequence[TaskResult]) -> None:
        """
        Raises:
            ResponseWriteError: the shard could not be written, because the disk is full for instance.
        """
        lines = (json.dumps(result.to_json(), ensure_ascii=False, separators=(",", ":")) + "\n" for result in results)
        self._put(_shard_name(number), "".join(lines))

    def read(self, number: int) -> list[TaskResult]:
        """
        Raises:
            ResponseStoreError: the file is not a shard.
        """
        path = self.folder / _shard_name(number)
        try:
            lines = path.read_text(encoding="utf-8").split("\n")
            return [TaskResult.from_json(json.loads(line)) for line in lines if line]
        except (ValueError, KeyError, TypeError) as problem:
            raise ResponseStoreError(
                f"{path} is not a shard of responses ({problem}): remove it and generate it again"
            ) from problem

    def read_all(self) -> Iterator[TaskResult]:
        """Every result, in order.

        Raises:
            DataError: shards are missing.
            ResponseStoreError: a file cannot be read.
        """
        count = self.manifest()["shards"]
        if missing := [number for number in range(count) if not self.has(number)]:
            raise DataError(
                f"{self.folder}: {len(missing)} of {count} shards are not written yet; give the command that began "
                "them again"
            )
        for number in range(count):
            yield from self.read(number)

    def _put(self, name: str, content: str) -> None:
        try:
            write_text(self.folder / name, content)
        except OSError as problem:
            raise ResponseWriteError(
                f"{self.folder / name} could not be written ({problem.strerror or problem}); finished shards are "
                "intact: make room there and give the same command again"
            ) from problem


def _shard_name(number: int) -> str:
    return f"shard-{number:05d}.jsonl"
