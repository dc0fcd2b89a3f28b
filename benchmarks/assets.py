# SPDX-License-Identifier: Apache-2.0
"""The committed target with its drafters, where SmolLM2's belongs, and prompts that none of them was trained on."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redrafter_training.data.python_corpus import extract_prompts, load_corpus, split

if TYPE_CHECKING:
    import torch

    from redrafter_training.target.model import TargetModel

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build"  # for logs and everything else that is not a result
ASSET = ROOT / "tests" / "assets" / "stdlib-llama"
SMOLLM2_DRAFTER = ROOT / "tests" / "assets" / "smollm2-135m-instruct" / "redrafter"
DRAFTER, SLIM_DRAFTER = "redrafter", "redrafter-slim"  # folders in the target's


def held_out_prompts(count: int, *, seed: int, max_chars: int) -> list[str]:
    """The beginnings of pieces of the standard library's held-out files, at most `max_chars` characters each."""
    return extract_prompts(split(load_corpus())[1], count, seed=seed, max_chars=max_chars)


def tokenized(texts: Sequence[str], tokenizer: Any, *, max_tokens: int | None = None) -> list[list[int]]:
    """Token ids of each text, the first `max_tokens` of them."""
    return [list(tokenizer(text)["input_ids"])[:max_tokens] for text in texts]


def load_target(folder: Path, dtype: "torch.dtype | None" = None, device: str = "cpu") -> "TargetModel":
    """The target in a folder; without a dtype in float32."""
    # Imported here, as most users of this module need only paths and start many processes.
    import torch
    from transformers import AutoModelForCausalLM

    from redrafter_training.target.model import TargetModel

    return TargetModel(AutoModelForCausalLM.from_pretrained(folder, dtype=dtype or torch.float32).to(device))
