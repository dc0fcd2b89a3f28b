# SPDX-License-Identifier: Apache-2.0
"""The prompts of MT-Bench and Spec-Bench, which drafters are measured on and never trained on."""

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from redrafter_vllm.utils import strict_json

SETS = {"mt-bench": "mt_bench.jsonl", "spec-bench": "spec_bench.jsonl"}


class PromptSetError(ValueError):
    """There is no such set or file, or a line of it has another form; the message says which."""


@dataclass(frozen=True)
class EvaluationPrompt:
    """What a user says, turn after turn; `category` is empty where the file names none."""

    number: str
    category: str
    turns: tuple[str, ...]


def load_prompts(source: str) -> list[EvaluationPrompt]:
    """The prompts of `mt-bench`, of `spec-bench`, or of a file of their form: a JSON object with `turns` per line.

    A `prompt` alone is a first turn.

    Raises:
        PromptSetError: there is no such set or file, or a line has another form.
    """
    if source in SETS:
        text = files(__name__).joinpath(SETS[source]).read_text("utf-8")
    else:
        try:
            text = Path(source).expanduser().read_text("utf-8")
        except (OSError, ValueError) as problem:
            raise PromptSetError(f"{source} is neither {' nor '.join(SETS)} nor a readable file ({problem})") from None
    found = [_prompt(f"{source}:{number}", line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not found:
        raise PromptSetError(f"{source} holds no prompts")
    return found


def _prompt(where: str, line: str) -> EvaluationPrompt:
    try:
        value = strict_json.loads(line)
    except ValueError as problem:
        raise PromptSetError(f"{where} is not JSON ({problem})") from None
    if isinstance(value, dict) and "turns" not in value and isinstance(value.get("prompt"), str):
        value = {**value, "turns": [value["prompt"]]}
    turns = value.get("turns") if isinstance(value, dict) else None
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, str) and turn.strip() for turn in turns):
        raise PromptSetError(f'{where} has another form than {{"turns": [prompt, …]}} or {{"prompt": prompt}}')
    return EvaluationPrompt(str(value.get("question_id", where)), str(value.get("category", "")), tuple(turns))
