# SPDX-License-Identifier: Apache-2.0
"""Questions at the end of conversations of a given length, which are padded in front with real text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.engines.passes import Pass
from benchmarks.serving.chat.comparison import Started
from benchmarks.serving.chat.questions import Reader, chosen_prompts
from redrafter_training.data.conversations import Turn

FILLER_SOURCE = "spec-bench"
FILLER_CATEGORIES = ("summarization", "rag", "writing", "humanities")


@dataclass(frozen=True)
class Exchange:
    """A user's turn and the target's answer."""

    asked: str
    said: str


def short_questions(reader: Reader, source: str, count: int, *, longest: int) -> list[str]:
    """`count` first turns that alone are prompts of at most `longest` tokens, from all categories in turn.

    Raises:
        ValueError: There are fewer.
    """
    by_category: dict[str, list[str]] = {}
    for prompt in chosen_prompts(source, (), 0):
        by_category.setdefault(prompt.category, []).append(prompt.turns[0])
    found: list[str] = []
    for place in range(max(map(len, by_category.values()))):
        for texts in by_category.values():
            if place < len(texts) and len(reader.prompt([Turn("user", texts[place])])) <= longest:
                found.append(texts[place])
    if len(found) < count:
        raise ValueError(f"{source} has {len(found)} questions of at most {longest} tokens, not {count}")
    return found[:count]


def filler_prompts(count: int, apart_from: Sequence[str]) -> list[str]:
    """Spec-Bench's documents (to sum up, to answer from) and questions of chats, in turns; none of `apart_from`."""
    kinds = [
        [prompt.turns[0] for prompt in chosen_prompts(FILLER_SOURCE, (category,), 0)] for category in FILLER_CATEGORIES
    ]
    mixed = [texts[place] for place in range(count) for texts in kinds if place < len(texts)]
    return [text for text in mixed if text not in apart_from][:count]


def answered(engine: Started, reader: Reader, texts: Sequence[str], *, max_tokens: int, longest: int) -> list[Exchange]:
    """Each text, cut to a prompt of at most `longest` tokens, with the target's greedy answer of `max_tokens`."""
    asked = [_cut(reader, text, longest) for text in texts]
    prompts = [reader.prompt([Turn("user", text)]) for text in asked]
    result = engine.process.take(Pass(prompts, max_tokens, end_tokens=reader.end_tokens), engine.finished)
    said = [reader.tokenizer.decode(tokens, skip_special_tokens=True) for tokens in result["tokens"]]
    return [Exchange(text, answer) for text, answer in zip(asked, said, strict=True)]


def _cut(reader: Reader, text: str, longest: int) -> str:
    """As much of the beginning as makes a prompt of at most `longest` tokens."""
    return text[: _most(len(text), lambda kept: len(reader.prompt([Turn("user", text[:kept])])) <= longest)]


def padded(reader: Reader, question: str, exchanges: Sequence[Exchange], length: int) -> list[int]:
    """The prompt of `question` at the end of a conversation of at most `length` tokens, and only a few less.

    The last exchanges come in front of it as they are. What is left is filled with the end of the text before them, in
    front of the first turn.

    Raises:
        ValueError: The question alone is longer, or all exchanges are shorter.
    """
    kept: list[Turn] = [Turn("user", question)]
    if len(reader.prompt(kept)) > length:
        raise ValueError(f"a question is longer than {length} tokens")
    for exchange in reversed(exchanges):
        longer = [Turn("user", exchange.asked), Turn("assistant", exchange.said), *kept]
        if len(reader.prompt(longer)) > length:
            return _filled(reader, kept, exchange, length)
        kept = longer
    raise ValueError(f"the text to pad with makes up {len(reader.prompt(kept))} tokens, not {length}")


def _filled(reader: Reader, turns: Sequence[Turn], exchange: Exchange, length: int) -> list[int]:
    """The prompt with as much of the end of an exchange in front of the first turn as fits."""
    text = f"{exchange.asked}\n\n{exchange.said}\n\n"

    def prompt(characters: int) -> list[int]:
        first = Turn("user", text[len(text) - characters :] + turns[0].content)
        return reader.prompt([first, *turns[1:]])

    return prompt(_most(len(text), lambda characters: len(prompt(characters)) <= length))


def _most(limit: int, fits: Callable[[int], bool]) -> int:
    """The greatest number up to `limit` that fits, if smaller ones do; 0 is not tried."""
    if fits(limit):
        return limit
    most, too_many = 0, limit
    while too_many - most > 1:
        middle = (most + too_many) // 2
        most, too_many = (middle, too_many) if fits(middle) else (most, middle)
    return most


def rotated(exchanges: Sequence[Exchange], number: int) -> list[Exchange]:
    """Another order for each question, so that they do not all have the same text in front of them."""
    first = number % len(exchanges)
    return [*exchanges[first:], *exchanges[:first]]
