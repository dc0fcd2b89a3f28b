# SPDX-License-Identifier: Apache-2.0
"""The pair that is shown where none is named: the demonstration's, in a clone of the repository."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redrafter_vllm.checkpoint.locate import registry_dir

ASSETS = Path(__file__).resolve().parents[2] / "tests" / "assets"
SMOLLM2 = "SmolLM2-135M-Instruct"
# On a CPU most of a tree's less probable nodes do not pay. Fixed: an engine that adapts may leave drafts out for a
# while, and drafts are what is to be seen.
TREE = {"beam_width": 3, "beam_length": 4, "num_speculative_tokens": 6, "adaptive": False}


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


def demo_pair() -> Pair | None:
    """SmolLM2 with its drafter, else the small pair; None outside a clone."""
    small = ASSETS / "stdlib-llama"
    targets = registry_dir(SMOLLM2).parent / "targets"
    pairs = (
        Pair(
            targets / SMOLLM2,
            ASSETS / SMOLLM2.lower() / "redrafter",
            ("--max-model-len", "2048", "--max-num-seqs", "1", "--kv-cache-memory-bytes", str(1 << 28)),
            is_text=False,
            prompt="Why is the sky blue?",
        ),
        Pair(
            small,
            small / "redrafter",
            ("--max-model-len", "1024", "--max-num-seqs", "1", "--kv-cache-memory-bytes", str(1 << 28)),
            is_text=True,
            prompt="def test_read(self):\n    with open(",
        ),
    )
    return next((pair for pair in pairs if pair.is_here), None)
