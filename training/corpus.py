# SPDX-License-Identifier: Apache-2.0
"""Text that every machine with Python has: the standard library's own sources, split by file."""

import ast
import hashlib
import random
import sysconfig
import warnings
from dataclasses import dataclass
from pathlib import Path

# Test suites are absent from some distributions' Python and hold deliberately broken files; the code pages in
# `encodings` are tables of escapes; the remaining names differ from one machine to the next.
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
    """Whether a file is kept away from all training: about 5 % of the files, decided by a hash of the path alone."""
    return hashlib.sha256(relative_path.encode()).digest()[0] < HELD_OUT_OF_256


def is_source_code(data: str) -> bool:
    """Whether `data` names Python sources: the standard library, or a folder with some."""
    folder = Path(data)
    return data == STDLIB or (folder.is_dir() and next(folder.rglob("*.py"), None) is not None)


def corpus_root(data: str) -> Path | None:
    """The folder of sources that `data` names, as `load_corpus` takes it."""
    return None if data == STDLIB else Path(data)


def _is_excluded(relative: Path) -> bool:
    return any(part in EXCLUDED_FOLDERS or part.startswith(EXCLUDED_PREFIXES) for part in relative.parts)


def _read_source(path: Path) -> str | None:
    """The file's text, or None when it is not valid UTF-8 Python or is empty."""
    try:
        text = path.read_text(encoding="utf-8")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(text)
    except (UnicodeDecodeError, SyntaxError, ValueError):
        return None
    return text if text.strip() else None


def source_files(root: Path | None = None) -> tuple[Path, list[Path]]:
    """The root itself (default: the running Python's standard library) and the files that count there, by path."""
    root = Path(sysconfig.get_path("stdlib")) if root is None else root
    paths = sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).as_posix())
    return root, [path for path in paths if not _is_excluded(path.relative_to(root))]


def load_corpus(root: Path | None = None) -> list[SourceFile]:
    """All usable source files under `root` (default: the running Python's standard library), ordered by path.

    Raises:
        FileNotFoundError: no usable source file lies under `root`.
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


def split(files: list[SourceFile]) -> tuple[list[SourceFile], list[SourceFile]]:
    """(training files, held-out files); see `is_held_out`."""
    return [f for f in files if not f.held_out], [f for f in files if f.held_out]


def extract_prompts(
    files: list[SourceFile], count: int, *, seed: int = 0, min_chars: int = 80, max_chars: int = 900
) -> list[str]:
    """`count` prompts of mixed length: stretches of the files that start at a line and stop anywhere.

    Lengths are uniform in [min_chars, max_chars]; files are drawn evenly, so long files do not dominate.

    Raises:
        ValueError: no file is long enough, or the lengths are not ordered.
    """
    if not 0 < min_chars <= max_chars:
        raise ValueError(f"need 0 < min_chars <= max_chars, got {min_chars} and {max_chars}")
    usable = [f for f in files if len(f.text) >= 2 * max_chars]
    if not usable:
        raise ValueError(f"no file has the {2 * max_chars} characters that prompts of {max_chars} need")
    rng = random.Random(seed)
    prompts = []
    for _ in range(count):
        text = rng.choice(usable).text
        length = rng.randint(min_chars, max_chars)
        start = text.rfind("\n", 0, rng.randint(0, len(text) - length)) + 1
        prompts.append(text[start : start + length])
    return prompts
