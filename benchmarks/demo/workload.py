# SPDX-License-Identifier: Apache-2.0
"""What every engine of the demonstration is given."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from benchmarks.demo.options import DemoOptions
from redrafter_training.data.python_corpus import extract_prompts, load_corpus, split

PROMPT_SEED = 7


@dataclass(frozen=True)
class Workload:
    """Prompts as text and as tokens, and how they are continued. Request i samples with seed i."""

    texts: list[str]
    prompts: list[list[int]]
    max_tokens: int
    temperature: float


def make_workload(tokenizer: Any, options: DemoOptions) -> Workload:
    """Prompts of mixed length from the standard library's held-out files."""
    texts = extract_prompts(split(load_corpus())[1], options.prompts, seed=PROMPT_SEED, max_chars=600)
    prompts = [list(tokenizer(text)["input_ids"]) for text in texts]
    return Workload(texts, prompts, options.max_tokens, options.temperature)


def load_tokenizer(target: Path) -> Any:
    """The target's own."""
    return AutoTokenizer.from_pretrained(target)
