# SPDX-License-Identifier: Apache-2.0
"""The pairs that are shown where none is named: the demonstration's, of a clone of the repository."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redrafter_vllm.checkpoint.locate import registry_dir

SMOLLM2 = "SmolLM2-135M-Instruct"
SMALL = "stdlib-llama"
FETCH = "fetch-smollm2"  # the command that downloads the chat model
# On a CPU most of a tree's less probable nodes do not pay. Fixed: an engine that adapts may leave drafts out for a
# while, and drafts are what is to be seen.
TREE = {"beam_width": 3, "beam_length": 4, "num_speculative_tokens": 6, "adaptive": False}
STDERR = 2


@dataclass(frozen=True)
class Pair:
    """A target with its drafter, and how it is shown."""

    target: Path
    drafter: Path
    options: tuple[str, ...]  # of `vllm serve`
    is_text: bool  # the target continues texts and has no chat template
    prompt: str

    @property
    def is_here(self) -> bool:
        """Whether both have been downloaded or trained."""
        return all((folder / "config.json").is_file() for folder in (self.target, self.drafter))

    @property
    def speculative(self) -> dict[str, Any]:
        """vLLM's speculative config."""
        return {"method": "redrafter", "model": str(self.drafter), **TREE}


def find_assets() -> Path | None:
    """The models of a clone: the one that this package is part of, else that of the working directory; or None.

    A package that was installed without `--editable` is no part of its clone.
    """
    roots = (Path(__file__).resolve().parents[2], Path.cwd())
    places = (root / "tests" / "assets" for root in roots)
    return next((place for place in places if (place / SMALL / "config.json").is_file()), None)


def chat_pair(assets: Path) -> Pair:
    """SmolLM2, which may have to be downloaded first, with the drafter in `assets`."""
    return Pair(
        registry_dir(SMOLLM2).parent / "targets" / SMOLLM2,
        assets / SMOLLM2.lower() / "redrafter",
        ("--max-model-len", "2048", "--max-num-seqs", "1", "--kv-cache-memory-bytes", str(1 << 28)),
        is_text=False,
        prompt="Why is the sky blue?",
    )


def small_pair(assets: Path) -> Pair:
    """The target of 3.5 million parameters in `assets`, trained on Python sources, with its drafter."""
    return Pair(
        assets / SMALL,
        assets / SMALL / "redrafter",
        ("--max-model-len", "1024", "--max-num-seqs", "1", "--kv-cache-memory-bytes", str(1 << 28)),
        is_text=True,
        prompt="def test_read(self):\n    with open(",
    )


def is_ready(pair: Pair, instead: str = "") -> bool:
    """Whether the chat pair is here, or has been downloaded now; `instead` ends the line that announces it."""
    if pair.is_here:
        return True
    print(f"downloading {SMOLLM2} (93 MB), once, to {pair.target}{instead}", file=sys.stderr)
    return fetch_chat_target()


def fetch_chat_target() -> bool:
    """Download SmolLM2 to where `chat_pair` expects it; the command shows its progress, or says why it fails."""
    command = [sys.executable, "-m", "redrafter_vllm", FETCH]
    # What it prints is about a download: it does not belong to the output of the command that calls it.
    return subprocess.run(command, stdout=STDERR, check=False).returncode == 0
