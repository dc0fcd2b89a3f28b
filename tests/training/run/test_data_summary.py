# SPDX-License-Identifier: Apache-2.0
"""The note on files of a folder that a training does not read."""

import json
from pathlib import Path

import pytest

from redrafter_training.data.conversations import load_conversations
from redrafter_training.data.python_corpus import is_source_code, load_corpus
from redrafter_training.run.data_summary import ignored_files

pytest.importorskip("datasets")


def fill(folder: Path, *names: str) -> str:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        messages = [{"role": "user", "content": name}, {"role": "assistant", "content": "Yes."}]
        path.write_text("x = 1\n" if name.endswith(".py") else json.dumps({"messages": messages}) + "\n")
    return str(folder)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.parametrize("names", [("a.jsonl",), ("a.jsonl", "b.jsonl")])
def test_a_script_in_a_folder_of_data(tmp_path: Path, names: tuple[str, ...]) -> None:
    data = fill(tmp_path / "data", *names, "convert.py")
    assert not is_source_code(data)
    assert [c.turns[0].content for c in load_conversations([data])[0]] == list(names)
    assert ignored_files(data) == (f"{data} is read as a data set: {len(names)} files are read, 1 are not (convert.py)")


def test_data_files_in_a_folder_of_sources(tmp_path: Path) -> None:
    data = fill(tmp_path / "data", "a.py", "b/c.py", "notes.jsonl", "tests/test_a.py")
    assert is_source_code(data)
    assert [file.path for file in load_corpus(Path(data))] == ["a.py", "b/c.py"]
    assert ignored_files(data) == (
        f"{data} is read as a Python source: 2 files are read, 2 are not (notes.jsonl, tests/test_a.py)"
    )


def test_files_that_the_datasets_library_ignores(tmp_path: Path) -> None:
    # A file with the name of a split makes the library forget the others; of several kinds it takes the commonest.
    data = fill(tmp_path / "data", "a.jsonl", "b.jsonl", "test.jsonl")
    assert ignored_files(data) == f"{data} is read as a data set: 1 files are read, 2 are not (a.jsonl, b.jsonl)"
    other = fill(tmp_path / "other", "a.jsonl", "b.jsonl", "c.txt")
    assert "2 files are read, 1 are not (c.txt)" in str(ignored_files(other))
    splits = fill(tmp_path / "splits", "train.jsonl", "test.jsonl")
    assert ignored_files(splits, splits=("train", "test")) is None
    assert "(test.jsonl)" in str(ignored_files(splits))


def test_no_note_if_all_files_are_read(tmp_path: Path) -> None:
    assert ignored_files("stdlib") is None
    assert ignored_files(fill(tmp_path / "data", "a.jsonl", ".git/b.py")) is None
    assert ignored_files(str(tmp_path / "data" / "a.jsonl")) is None
