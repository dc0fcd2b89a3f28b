# SPDX-License-Identifier: Apache-2.0
"""Thoughts in the answers of models that think before they answer: where one stands, and what is left without it."""

from collections.abc import Mapping
from typing import Any

THINK, THOUGHT = "<think>", "</think>"  # what surrounds a thought
_FIELDS = ("reasoning_content", "reasoning")


def with_thought(turn: Mapping[str, Any], content: Any) -> Any:
    """The content behind the thought that some data sets, as the engines they come from, keep in a field of its own."""
    thought = next((turn[key] for key in _FIELDS if turn.get(key)), None)
    if not isinstance(thought, str) or not isinstance(content, str) or THOUGHT in content:
        return content
    return f"{THINK}\n{thought.strip()}\n{THOUGHT}\n\n{content}"


def left_to_say(answer: str, begun: str) -> str:
    """What is left of an answer with a thought when the prompt for it has begun it with `begun`."""
    before, opened, rest = answer.partition(THINK)
    return rest.lstrip("\n") if THINK in begun and opened and not before.strip() else answer


def same_words(one: str, other: str) -> bool:
    """Whether two texts differ in white space alone, which templates set anew around thoughts."""
    return "".join(one.split()) == "".join(other.split())


def shared(one: str, other: str) -> int:
    """Characters that two texts have in common at their beginnings."""
    same, most = 0, min(len(one), len(other))
    while same < most:
        # Halves are compared as a whole: a template may render megabytes.
        end = (same + most + 1) // 2
        if one.startswith(other[same:end], same):
            same = end
        else:
            most = end - 1
    return same
