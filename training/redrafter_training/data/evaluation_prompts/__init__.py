# SPDX-License-Identifier: Apache-2.0
"""The prompts of MT-Bench and Spec-Bench, which drafters are measured on and never trained on."""

from bisect import bisect_right
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

from redrafter_training.data.report import DataError
from redrafter_training.data.text_keys import normalised, text_key
from redrafter_vllm.utils import strict_json

SETS = {"mt-bench": "mt_bench.jsonl", "spec-bench": "spec_bench.jsonl"}
# A shorter prompt inside of a longer one may be there by chance.
MIN_CONTAINED = 40  # characters


@dataclass(frozen=True)
class EvaluationPrompt:
    """What a user says, turn after turn; `category` is empty where the file names none."""

    number: str
    category: str
    turns: tuple[str, ...]


def load_prompts(source: str) -> list[EvaluationPrompt]:
    """The prompts of `mt-bench`, of `spec-bench`, or of a file of their form: a JSON object with `turns` per line.

    Raises:
        DataError: there is no such set or file, or a line has another form.
    """
    if source in SETS:
        text = files(__name__).joinpath(SETS[source]).read_text("utf-8")
    else:
        try:
            text = Path(source).expanduser().read_text("utf-8")
        except (OSError, ValueError) as problem:
            raise DataError(f"{source} is neither {' nor '.join(SETS)} nor a readable file ({problem})") from None
    found = [_prompt(f"{source}:{number}", line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not found:
        raise DataError(f"{source} holds no prompts")
    return found


def _prompt(where: str, line: str) -> EvaluationPrompt:
    try:
        value = strict_json.loads(line)
    except ValueError as problem:
        raise DataError(f"{where} is not JSON ({problem})") from None
    turns = value.get("turns") if isinstance(value, dict) else None
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, str) and turn.strip() for turn in turns):
        raise DataError(f'{where} has another form than {{"turns": [prompt, …]}}')
    return EvaluationPrompt(str(value.get("question_id", where)), str(value.get("category", "")), tuple(turns))


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
