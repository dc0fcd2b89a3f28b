# SPDX-License-Identifier: Apache-2.0
"""What says the same as the prompts of MT-Bench and Spec-Bench, on which drafters are measured and never trained."""

from bisect import bisect_right
from functools import cache

from redrafter_training.data.text_keys import normalised, text_key
from redrafter_vllm.prompt_sets import SETS, load_prompts

# A shorter prompt inside of a longer one may be there by chance.
MIN_CONTAINED = 40  # characters


def is_evaluation_prompt(text: str) -> bool:
    """Whether a text says the same as a turn of the sets here, or holds one, or is part of one."""
    said = normalised(text)
    if said in _turns():
        return True
    if len(said) < MIN_CONTAINED:
        return False
    long_turns = _long_turns()
    fitting = bisect_right(long_turns, len(said), key=len)
    return any(turn in said for turn in long_turns[:fitting]) or said in _joined()


def is_evaluation_key(key: int) -> bool:
    """Whether the text with this key says the same as a turn of the sets here."""
    return key in _keys()


@cache
def _turns() -> frozenset[str]:
    return frozenset(normalised(turn) for name in SETS for prompt in load_prompts(name) for turn in prompt.turns)


@cache
def _long_turns() -> list[str]:
    """Those that are looked for inside of other texts, by length."""
    return sorted((turn for turn in _turns() if len(turn) >= MIN_CONTAINED), key=len)


@cache
def _keys() -> frozenset[int]:
    return frozenset(map(text_key, _turns()))


@cache
def _joined() -> str:
    return "\0".join(sorted(_turns()))
