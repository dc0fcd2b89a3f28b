# SPDX-License-Identifier: Apache-2.0
import hashlib
from pathlib import Path

import pytest

from redrafter_training.data.python_corpus import SourceFile, extract_prompts, is_held_out, load_corpus, split


def test_split_is_disjoint_and_complete(corpus_root: Path) -> None:
    files = load_corpus(corpus_root)
    training, held_out = split(files)
    assert training
    assert held_out
    assert not {f.path for f in training} & {f.path for f in held_out}
    assert len(training) + len(held_out) == len(files)


def test_split_depends_on_the_path_alone() -> None:
    # Known since the committed target was trained; a change would let its training text into the measurements.
    held_out = ["chunk.py", "opcode.py", "secrets.py", "traceback.py", "email/contentmanager.py", "venv/__init__.py"]
    training = ["ast.py", "typing.py", "json/decoder.py", "email/message.py", "asyncio/tasks.py"]
    assert all(map(is_held_out, held_out))
    assert not any(map(is_held_out, training))
    assert hashlib.sha256(b"opcode.py").digest()[0] < 13


def test_copies_of_a_file_are_on_one_side_of_the_split() -> None:
    names = ["opcode.py", "ast.py", "typing.py", "json/decoder.py"]  # the first is held out by its path
    files = [
        SourceFile(name, text) for name, text in zip(names, ["a = 1\n", "A  = 1", "b = 2\n", "b = 2\n\n"], strict=True)
    ]
    training, held_out = split(files)
    assert ([f.path for f in training], [f.path for f in held_out]) == (["typing.py"], ["opcode.py"])
    assert [f.path for f in split(files, keep_duplicates=True)[0]] == ["typing.py", "json/decoder.py"]
    # Of few files, all on one side by their paths, one is on the other.
    trained, held = [SourceFile(f"{n}.py", f"x = {n}\n") for n in ("ast", "typing")], SourceFile("opcode.py", "y = 1\n")
    for few in (trained, [held, SourceFile("secrets.py", "z = 1\n")]):
        assert [len(side) for side in split(few)] == [1, 1]
    assert split(trained[:1]) == (trained[:1], [])


def test_files_are_ordered_by_path(corpus_root: Path) -> None:
    paths = [f.path for f in load_corpus(corpus_root)]
    assert paths == sorted(paths)


def test_excluded_files(tmp_path: Path) -> None:
    texts = {
        "good.py": b"a = 1\n",
        "broken.py": b"def f(:\n",
        "latin.py": b"# -*- coding: latin-1 -*-\n# \xe9\n",
        "nul.py": b"a = '\x00'\n",
        "empty.py": b"\n",
        "test/test_a.py": b"a = 1\n",
        "site-packages/p.py": b"a = 1\n",
        "pkg/tests/t.py": b"a = 1\n",
        "_sysconfigdata__linux.py": b"a = 1\n",
        "pkg/fine.py": b"b = 2\n",
    }
    for name, text in texts.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text)
    assert [f.path for f in load_corpus(tmp_path)] == ["good.py", "pkg/fine.py"]


def test_no_source_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no Python source files"):
        load_corpus(tmp_path)


def test_prompts_are_seeded_and_within_lengths(corpus_root: Path) -> None:
    files = split(load_corpus(corpus_root))[1]
    prompts = extract_prompts(files, 30, seed=3, min_chars=40, max_chars=300)
    assert prompts == extract_prompts(files, 30, seed=3, min_chars=40, max_chars=300)
    assert prompts != extract_prompts(files, 30, seed=4, min_chars=40, max_chars=300)
    assert all(40 <= len(p) <= 300 for p in prompts)
    assert len({len(p) for p in prompts}) > 10
    assert all(any(p in f.text for f in files) for p in prompts)


def test_prompts_from_too_short_files(corpus_root: Path) -> None:
    files = split(load_corpus(corpus_root))[1]
    with pytest.raises(ValueError, match="no file has"):
        extract_prompts(files, 1, max_chars=10**7)
    with pytest.raises(ValueError, match="min_chars"):
        extract_prompts(files, 1, min_chars=9, max_chars=8)
