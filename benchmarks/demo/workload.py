# SPDX-License-Identifier: Apache-2.0
"""The prompts of the demonstration."""

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from benchmarks.assets import held_out_prompts, tokenized
from benchmarks.demo.options import DemoOptions
from benchmarks.engines.offline import Workload

PROMPT_SEED = 7


def make_workload(tokenizer: Any, options: DemoOptions) -> Workload:
    """Prompts of mixed length from the standard library's held-out files."""
    texts = held_out_prompts(options.prompts, seed=PROMPT_SEED, max_chars=600)
    return Workload(texts, tokenized(texts, tokenizer), options.max_tokens, options.temperature)


def load_tokenizer(target: Path) -> Any:
    """The target's tokenizer."""
    return AutoTokenizer.from_pretrained(target)
