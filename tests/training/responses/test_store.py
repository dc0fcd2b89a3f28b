# SPDX-License-Identifier: Apache-2.0
"""Folders of responses: shards that are complete or absent, one command at a time."""

import errno
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

from redrafter_training.data.report import DataError, Reason
from redrafter_training.responses.records import Response, TaskResult
from redrafter_training.responses.store import (
    ResponseStore,
    ResponseStoreError,
    ResponseWriteError,
)
from redrafter_training.utils.folder_lock import FolderInUseError
from tests.training.responses.stored import open_store, task_result


def test_one_command_at_a_time_writes_to_a_folder(tmp_path: Path) -> None:
    """Another one would delete the shard that is being written."""
    texts = [task_result(0)]
    store = open_store(tmp_path / "out", texts, 1)
    writing = tmp_path / "out" / "shard-00000.jsonl.writing"
    with store.held():
        writing.write_text("half a sh")
        message = r"another command \(process \d+ on .*choose another --out"
        with pytest.raises(FolderInUseError, match=message), ResponseStore(store.folder).held():
            pass
        assert writing.exists()
    with store.held():
        open_store(store.folder, texts, 1)
    assert sorted(path.name for path in store.folder.iterdir()) == ["lock", "regenerated.json"]


@pytest.mark.parametrize("content", ["[" * 100_000, "[]", "{}", '{"settings": 3}', ""])
def test_a_damaged_manifest_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "regenerated.json").write_text(content)
    with pytest.raises(ResponseStoreError, match=r"regenerated\.json"):
        ResponseStore(tmp_path).manifest()


def test_shards_are_complete_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [task_result(0), replace(task_result(1, ()), skipped=Reason.EMPTY, detail="\u2028 in it")]
    store = open_store(tmp_path / "out", texts, 2)
    store.write(0, texts)
    assert store.read(0) == texts
    before = (tmp_path / "out" / "shard-00000.jsonl").read_bytes()
    with pytest.raises(DataError, match="1 of 2 shards"):
        list(store.read_all())

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(ResponseWriteError, match=r"No space left.*intact"):
            store.write(1, texts)
    assert sorted(path.name for path in store.folder.iterdir()) == ["regenerated.json", "shard-00000.jsonl"]
    # What a kill in the middle of writing leaves.
    (store.folder / "shard-00001.jsonl.writing").write_text('{"index": 7')
    again = open_store(store.folder, texts, 2)
    assert again.has(0) and not again.has(1)
    assert not (store.folder / "shard-00001.jsonl.writing").exists()
    again.write(1, [task_result(2)])
    assert [text.index for text in again.read_all()] == [0, 1, 2]
    assert (store.folder / "shard-00000.jsonl").read_bytes() == before


def test_folders_that_are_refused(tmp_path: Path) -> None:
    open_store(tmp_path / "out", [], 1)
    with pytest.raises(ResponseStoreError, match="seed: 1 -> 2"):
        open_store(tmp_path / "out", [], 1, seed=2)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").touch()
    with pytest.raises(ResponseStoreError, match="something else"):
        open_store(tmp_path / "other", [], 1)
    with pytest.raises(ResponseStoreError, match="not a folder"):
        open_store(tmp_path / "other" / "thesis.txt", [], 1)
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["thesis.txt"]


LINES = (
    '{"index":0,"where":"data.jsonl:1","held_out":false,"temperature":0.8,"answers":[{"prompt_ids":[5,6],'
    '"answer_ids":[7,1],"text":"ja","ended":true}],"left_out":1,"skipped":null,"detail":"","prompts":[11,12]}\n'
    '{"index":1,"where":"data.jsonl:2","held_out":true,"temperature":0.0,"answers":[],"left_out":0,'
    '"skipped":"prompt too long","detail":"9 tokens","prompts":[13]}\n'
)


def test_lines_keep_their_format(tmp_path: Path) -> None:
    store = open_store(tmp_path / "out", [], 2)
    shard = store.folder / "shard-00000.jsonl"
    shard.write_text(LINES)
    results = [
        TaskResult(0, "data.jsonl:1", False, 0.8, (Response((5, 6), (7, 1), "ja", True),), 1, prompts=(11, 12)),
        TaskResult(1, "data.jsonl:2", True, 0.0, (), 0, Reason.PROMPT_TOO_LONG, "9 tokens", (13,)),
    ]
    assert store.read(0) == results
    store.write(1, results)
    assert (store.folder / "shard-00001.jsonl").read_text() == LINES
    # Earlier versions wrote no prompts.
    shard.write_text(re.sub(',"prompts":[^}]*', "", LINES))
    assert store.read(0) == [replace(result, prompts=()) for result in results]
