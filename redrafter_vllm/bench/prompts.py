# SPDX-License-Identifier: Apache-2.0
"""The prompts of a benchmark: first turns of MT-Bench, Spec-Bench or a file, or random tokens."""

import json
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from redrafter_vllm.prompt_sets import SETS, EvaluationPrompt, PromptSetError, load_prompts
from redrafter_vllm.utils.atomic import write_text

RANDOM = "random"
SEED = 0


@dataclass(frozen=True)
class Prompts:
    """Texts as a server gets them, and their token ids."""

    texts: list[str]
    ids: list[list[int]]
    adds_special_tokens: bool  # whether a server must add the tokenizer's special tokens to the texts

    def __len__(self) -> int:
        return len(self.texts)

    def write(self, path: Path) -> None:
        """As a custom data set of `vllm bench serve`."""
        write_text(path, "".join(json.dumps({"prompt": text}) + "\n" for text in self.texts))


def sources(data: str) -> list[EvaluationPrompt] | None:
    """The prompts of a data set in a mixed order; None for random tokens.

    Args:
        data: `mt-bench`, `spec-bench`, `random`, or a file: `.jsonl` has a JSON object with `turns` or a `prompt` per
            line, any other a prompt per line.

    Raises:
        PromptSetError: There is no such data set, or it cannot be read.
    """
    if data == RANDOM:
        return None
    if data not in SETS and not Path(data).expanduser().is_file():
        raise PromptSetError(f"{data} is no data set: give {', '.join(SETS)}, {RANDOM}, or a file of prompts")
    if data in SETS or data.endswith((".jsonl", ".json")):
        return mixed(load_prompts(data))
    try:
        lines = Path(data).expanduser().read_text("utf-8").splitlines()
    except (OSError, ValueError) as problem:
        raise PromptSetError(f"{data} cannot be read as text ({problem})") from None
    found = [EvaluationPrompt(str(number), "", (line,)) for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise PromptSetError(f"{data} holds no prompts")
    return found


def mixed(prompts: Sequence[EvaluationPrompt]) -> list[EvaluationPrompt]:
    """The same prompts, one of each category in turns, as sets are sorted by category."""
    by_category: defaultdict[str, list[EvaluationPrompt]] = defaultdict(list)
    for prompt in prompts:
        by_category[prompt.category].append(prompt)
    return [prompt for row in zip_longest(*by_category.values()) for prompt in row if prompt is not None]


def make_prompts(data: str, tokenizer: Any, count: int, tokens: int) -> Prompts:
    """`count` prompts of at most `tokens` tokens, random ones of about so many.

    A chat model gets the first turns through its chat template, any other model as they are.

    Raises:
        PromptSetError: See `sources`; or there are too few.
    """
    found = sources(data)
    if found is None:
        return _random(tokenizer, count, tokens)
    turns = [prompt.turns[0] for prompt in found]
    is_chat = tokenizer.chat_template is not None
    texts = [_rendered(tokenizer, turn) for turn in turns] if is_chat else turns
    encoded = [list(tokenizer(text, add_special_tokens=not is_chat, verbose=False)["input_ids"]) for text in texts]
    fitting = [(text, ids) for text, ids in zip(texts, encoded, strict=True) if 0 < len(ids) <= tokens]
    if len(fitting) < count:
        raise PromptSetError(
            f"{data} has {len(fitting)} prompts of at most {tokens} tokens, and {count} are needed: give a larger "
            "--prompt-tokens, or smaller --requests and --concurrency"
        )
    return Prompts([text for text, _ in fitting[:count]], [ids for _, ids in fitting[:count]], not is_chat)


def _rendered(tokenizer: Any, turn: str) -> str:
    return str(
        tokenizer.apply_chat_template([{"role": "user", "content": turn}], tokenize=False, add_generation_prompt=True)
    )


def _random(tokenizer: Any, count: int, tokens: int) -> Prompts:
    """Texts of random tokens. Encoded again, a text has other tokens, a few more or fewer; what is longer is cut."""
    generator = random.Random(SEED)
    special = set(tokenizer.all_special_ids)
    plain = [token for token in range(len(tokenizer)) if token not in special]
    texts, encoded = [], []
    for _ in range(count):
        text = tokenizer.decode(generator.choices(plain, k=tokens))
        encoded.append(list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])[:tokens])
        texts.append(tokenizer.decode(encoded[-1]))
    return Prompts(texts, encoded, False)
