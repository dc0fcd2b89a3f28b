# SPDX-License-Identifier: Apache-2.0
"""Python sources as training text: the standard library, which every machine has, or a folder; split by file."""

import ast
import hashlib
import random
import sysconfig
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from redrafter_training.data.records import DATA_SUFFIXES
from redrafter_training.data.text_keys import normalised, text_key

# Test suites are missing in some distributions of Python and contain deliberately broken files; the code pages in
# `encodings` are tables of escapes; the other names differ between machines.
EXCLUDED_FOLDERS = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "__pycache__", "pydoc_data"}
)
EXCLUDED_PREFIXES = ("config-", "_sysconfigdata", "__phello__")
HELD_OUT_OF_256 = 13
STDLIB = "stdlib"


@dataclass(frozen=True)
class SourceFile:
    """One source file: its path relative to the library's root (POSIX spelling) and its text."""

    path: str
    text: str

    @property
    def held_out(self) -> bool:
        return is_held_out(self.path)


def is_held_out(relative_path: str) -> bool:
    """Whether a file is held out of training: about 5 % of the files, decided by a hash of the path alone."""
    return _path_hash(relative_path)[0] < HELD_OUT_OF_256


def _path_hash(relative_path: str) -> bytes:
    return hashlib.sha256(relative_path.encode()).digest()


def is_source_code(data: str) -> bool:
    """Whether `data` means Python sources: the standard library, or a folder with more source files than data files."""
    folder = Path(data)
    if data == STDLIB or not folder.is_dir():
        return data == STDLIB
    sources = len(source_files(folder)[1])
    return sources > 0 and sources > sum(len(list(folder.rglob(f"*{suffix}"))) for suffix in DATA_SUFFIXES)


def corpus_root(data: str) -> Path | None:
    """The argument of `load_corpus` for the sources that `data` means."""
    return None if data == STDLIB else Path(data)


def _is_excluded(relative: Path) -> bool:
    return any(part in EXCLUDED_FOLDERS or part.startswith(EXCLUDED_PREFIXES) for part in relative.parts)


def _read_source(path: Path) -> str | None:
    """The file's text; None if it is not valid UTF-8 Python or is empty."""
    try:
        text = path.read_text(encoding="utf-8")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(text)
    except (UnicodeDecodeError, SyntaxError, ValueError):
        return None
    return text if text.strip() else None


def source_files(root: Path | None = None) -> tuple[Path, list[Path]]:
    """The root (default: the running Python's standard library) and its source files, ordered by path."""
    root = Path(sysconfig.get_path("stdlib")) if root is None else root
    paths = sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).as_posix())
    return root, [path for path in paths if not _is_excluded(path.relative_to(root))]


def load_corpus(root: Path | None = None) -> list[SourceFile]:
    """All usable source files under `root` (default: the running Python's standard library), ordered by path.

    Raises:
        FileNotFoundError: there is no usable source file under `root`.
    """
    root, paths = source_files(root)
    files = []
    for path in paths:
        text = _read_source(path)
        if text is not None:
            files.append(SourceFile(path.relative_to(root).as_posix(), text))
    if not files:
        raise FileNotFoundError(f"no Python source files under {root}")
    return files


def split(files: Sequence[SourceFile], *, keep_duplicates: bool = False) -> tuple[list[SourceFile], list[SourceFile]]:
    """(training files, held-out files), each text once, even if several paths have copies of it.

    See `is_held_out`; a text is held out if one of its copies is. If that holds for all texts or for none, a single one
    is held out: the first by the hash of its path.

    Args:
        keep_duplicates: keep all copies in training.
    """
    copies: dict[int, list[SourceFile]] = {}
    for file in files:
        copies.setdefault(text_key(file.text), []).append(file)
    held = {key for key, same in copies.items() if any(file.held_out for file in same)}
    if len(copies) > 1 and len(held) in (0, len(copies)):
        held = {min(copies, key=lambda key: min(_path_hash(file.path) for file in copies[key]))}
    kept = None if keep_duplicates else 1
    training = [file for key, same in copies.items() if key not in held for file in same[:kept]]
    return training, [same[0] for key, same in copies.items() if key in held]


def extract_prompts(
    files: list[SourceFile], count: int, *, seed: int = 0, min_chars: int = 80, max_chars: int = 900
) -> list[str]:
    """`count` prompts of mixed length: parts of the files that start at a line and stop anywhere.

    Lengths are uniform in [min_chars, max_chars]; files are drawn uniformly, so that long files do not dominate.

    Raises:
        ValueError: no file is long enough, or min_chars > max_chars.
    """
    if not 0 < min_chars <= max_chars:
        raise ValueError(f"need 0 < min_chars <= max_chars, got {min_chars} and {max_chars}")
    long_enough = [f for f in files if len(f.text) >= 2 * max_chars]
    if not long_enough:
        raise ValueError(f"no file has the {2 * max_chars} characters that prompts of {max_chars} need")
    rng = random.Random(seed)
    prompts = []
    for _ in range(count):
        text = rng.choice(long_enough).text
        length = rng.randint(min_chars, max_chars)
        start = text.rfind("\n", 0, rng.randint(0, len(text) - length)) + 1
        prompts.append(text[start : start + length])
    return prompts


def unseen_prompts(
    training: Sequence[SourceFile], held_out: list[SourceFile], count: int, *, seed: int, max_chars: int
) -> list[str]:
    """At most `count` distinct prompts of `extract_prompts` that occur in no training file (a licence text might).

    Raises:
        ValueError: as `extract_prompts`, or all prompts occur in training files.
    """
    known = normalised("\n".join(file.text for file in training))
    drawn = dict.fromkeys(extract_prompts(held_out, 4 * count, seed=seed, max_chars=max_chars))
    unseen = [prompt for prompt in drawn if normalised(prompt) not in known]
    if not unseen:
        raise ValueError("every prompt from the held-out files occurs in the training files")
    return unseen[:count]
