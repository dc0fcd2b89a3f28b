# SPDX-License-Identifier: Apache-2.0
"""The prompts of the demonstration: questions for a chat model, texts to be continued for another."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from benchmarks.assets import held_out_prompts
from redrafter_vllm.prompt_sets import load_prompts

PROMPT_SEED = 7
SECOND_TURNS = 2  # so many of the first prompts have one

Message = dict[str, str]
Prompt = str | list[Message]  # a text to be continued, or a conversation to be answered


def load_tokenizer(target: Path) -> Any:
    """The target's tokenizer."""
    return AutoTokenizer.from_pretrained(target)


def choose_prompts(tokenizer: Any, count: int) -> list[Prompt]:
    """First turns of MT-Bench from all of its categories; without a chat template, parts of held-out Python sources.

    Raises:
        ValueError: There are fewer prompts.
    """
    if tokenizer.chat_template is None:
        return list(held_out_prompts(count, seed=PROMPT_SEED, max_chars=600))
    return [[_said_by("user", turns[0])] for turns in _questions(count)]


def second_turns(prompts: Sequence[Prompt], answers: Sequence[str]) -> list[Prompt]:
    """What `SECOND_TURNS` of the conversations ask next; `answers` are those to their first turns."""
    conversations = [prompt for prompt in prompts if not isinstance(prompt, str)]
    asked = zip(conversations, answers, _questions(len(prompts)), strict=False)
    return [
        [*said, _said_by("assistant", answer), _said_by("user", turns[1])]
        for said, answer, turns in list(asked)[:SECOND_TURNS]
    ]


def last_words(prompt: Prompt) -> str:
    """The text to be continued, or the question to be answered."""
    return prompt if isinstance(prompt, str) else prompt[-1]["content"] + "\n\n"


def _questions(count: int) -> list[tuple[str, ...]]:
    """Turns of so many conversations, evenly spaced, as MT-Bench is sorted by category."""
    conversations = load_prompts("mt-bench")
    if count > len(conversations):
        raise ValueError(f"MT-Bench has {len(conversations)} prompts, not {count}: give a smaller --prompts")
    return [conversations[index * len(conversations) // count].turns for index in range(count)]


def _said_by(role: str, content: str) -> Message:
    return {"role": role, "content": content}
