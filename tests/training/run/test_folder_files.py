# SPDX-License-Identifier: Apache-2.0
"""What a training says of a folder that holds files of several kinds."""

import json
from pathlib import Path

import pytest

from redrafter_training.data.conversations import load_conversations
from redrafter_training.data.python_corpus import is_source_code, load_corpus
from redrafter_training.run.folder_files import passed_over

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
def test_a_stray_script_among_data(tmp_path: Path, names: tuple[str, ...]) -> None:
    data = fill(tmp_path / "data", *names, "convert.py")
    assert not is_source_code(data)
    assert [c.turns[0].content for c in load_conversations([data])[0]] == list(names)
    assert passed_over(data) == (f"{data} is read as a data set: {len(names)} files are taken, 1 are not (convert.py)")


def test_data_among_sources(tmp_path: Path) -> None:
    data = fill(tmp_path / "data", "a.py", "b/c.py", "notes.jsonl", "tests/test_a.py")
    assert is_source_code(data)
    assert [file.path for file in load_corpus(Path(data))] == ["a.py", "b/c.py"]
    assert passed_over(data) == (
        f"{data} is read as a Python source: 2 files are taken, 2 are not (notes.jsonl, tests/test_a.py)"
    )


def test_files_that_the_library_passes_over(tmp_path: Path) -> None:
    # A file with the name of a split makes the library forget the others; of several kinds it takes the commonest.
    data = fill(tmp_path / "data", "a.jsonl", "b.jsonl", "test.jsonl")
    assert passed_over(data) == f"{data} is read as a data set: 1 files are taken, 2 are not (a.jsonl, b.jsonl)"
    other = fill(tmp_path / "other", "a.jsonl", "b.jsonl", "c.txt")
    assert "2 files are taken, 1 are not (c.txt)" in str(passed_over(other))
    splits = fill(tmp_path / "splits", "train.jsonl", "test.jsonl")
    assert passed_over(splits, splits=("train", "test")) is None
    assert "(test.jsonl)" in str(passed_over(splits))


def test_nothing_is_passed_over(tmp_path: Path) -> None:
    assert passed_over("stdlib") is None
    assert passed_over(fill(tmp_path / "data", "a.jsonl", ".git/b.py")) is None
    assert passed_over(str(tmp_path / "data" / "a.jsonl")) is None
