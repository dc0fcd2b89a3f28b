# SPDX-License-Identifier: Apache-2.0
"""Fingerprints of files and targets by content, so that stored results are reused only for the inputs they came from.

Whole files are read. Samples of them would miss a norm that was multiplied by -1, and reading costs less than the
loading that follows: 0.7 s per GB on one core with SHA instructions, after which the files are in memory anyway. A
target on the hub is identified by its commit, which determines the content of all its files.
"""

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

from tqdm import tqdm

WEIGHTS = ("config.json", "*.safetensors", "*.bin", "*.index.json", "*.py")
TOKENIZER = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "chat_template*",
    "additional_chat_templates/*",
)
GENERATION = ("generation_config.json",)
DIGITS = 32
READERS = 4  # files hashed at once
COMMIT = "commit"  # begins the fingerprint of a target on the hub


def weights_fingerprint(target: str) -> str:
    """Fingerprint of what determines the hidden states of given tokens: weights, configuration, model code."""
    return _fingerprint(target, WEIGHTS)


def tokenizer_fingerprint(target: str) -> str:
    """Fingerprint of what determines the tokens of given conversations: tokenizer and chat template."""
    return _fingerprint(target, TOKENIZER)


def target_fingerprint(target: str) -> dict[str, str]:
    """Fingerprints of what determines the target's responses, by part, so that messages can name the part that differs.

    A copy of a folder has the same fingerprints.
    """
    return {
        "weights": weights_fingerprint(target),
        "tokenizer": tokenizer_fingerprint(target),
        "generation": _fingerprint(target, GENERATION),
    }


def folder_fingerprint(folder: Path, patterns: Iterable[str]) -> str:
    """Fingerprint of those files of a folder whose names match one of `patterns`."""
    return files_fingerprint(sorted({path for pattern in patterns for path in folder.glob(pattern)}), folder)


def files_fingerprint(files: Iterable[Path], root: Path) -> str:
    """Fingerprint of the content of files, in order, and of their names below `root`."""
    files = [path for path in files if path.is_file()]
    sizes = [path.stat().st_size for path in files]
    digest = hashlib.sha256()
    with ThreadPoolExecutor(READERS) as readers, _reading(sum(sizes)) as progress:
        for path, size, content in zip(files, sizes, readers.map(file_digest, files), strict=True):
            digest.update(f"{path.relative_to(root).as_posix()} {content}\n".encode())
            progress.update(size)
    return digest.hexdigest()[:DIGITS]


def _reading(size: int) -> "tqdm[None]":
    """A progress bar at a terminal, where reading takes more than moments."""
    return tqdm(
        total=size, desc="reading files to compare", unit="B", unit_scale=True, delay=2, leave=False, disable=None
    )


def file_digest(path: Path) -> str:
    """Digest of a whole file, which a process reads once unless its size or time of modification changes."""
    state = path.stat()
    return _digest(path, state.st_size, state.st_mtime_ns)


@lru_cache
def _digest(path: Path, size: int, modified: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:DIGITS]


def _fingerprint(target: str, patterns: Iterable[str]) -> str:
    folder = Path(target).expanduser()
    if not folder.is_dir():
        from transformers import PretrainedConfig

        # The plain file is read, so that a model with its own code needs no --trust-remote-code here.
        described, _ = PretrainedConfig.get_config_dict(target)
        return f"{COMMIT} {described.get('_commit_hash')} of {target}"
    return folder_fingerprint(folder, patterns)
