# SPDX-License-Identifier: Apache-2.0
"""Results and folders of responses, made by hand."""

from collections.abc import Sequence
from pathlib import Path

from redrafter_training.data.text_keys import text_key
from redrafter_training.responses.records import Response, TaskResult
from redrafter_training.responses.store import ResponseStore, vocabulary_fingerprint
from tests.training.chat_tokenizers import byte_tokenizer


def task_result(
    index: int, exchanges: Sequence[tuple[str, str]] = (("ask", "tell"),), held_out: bool = False
) -> TaskResult:
    """A result whose tokens are the bytes of prompts and responses."""
    responses = tuple(Response(tuple(ask.encode()), tuple(tell.encode()), tell, True) for ask, tell in exchanges)
    prompts = tuple(text_key(ask) for ask, _ in exchanges)
    return TaskResult(index, f"w{index}", held_out, 0.5, responses, prompts=prompts)


def open_store(folder: Path, results: Sequence[TaskResult], shards: int, seed: int = 1) -> ResponseStore:
    settings = {"target": "t", "seed": seed, "vocabulary": vocabulary_fingerprint(byte_tokenizer())}
    store = ResponseStore(folder)
    store.open(settings, len(results), shards, {})
    return store


def write_store(folder: Path, results: Sequence[TaskResult]) -> ResponseStore:
    """A folder of one shard."""
    store = open_store(folder, results, 1)
    store.write(0, results)
    return store
