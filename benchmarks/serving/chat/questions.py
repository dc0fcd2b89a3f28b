# SPDX-License-Identifier: Apache-2.0
"""Questions of a prompt set, and the prompts that they become with the target's answers to the earlier turns."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from benchmarks.engines.passes import Pass
from redrafter_training.data.chat_templates import resolve_chat_template
from redrafter_training.data.conversations import Turn
from redrafter_training.data.rendering import ChatTemplate
from redrafter_training.responses.engine import Completion, Request
from redrafter_training.run.prompt_evaluation import answer_prompts
from redrafter_training.target.properties import read_end_tokens
from redrafter_vllm.bench.engine import EngineProcess, Finished
from redrafter_vllm.prompt_sets import EvaluationPrompt, load_prompts

ALL = "all"


@dataclass(frozen=True)
class Question:
    """One turn of a conversation as token ids, rendered by the target's chat template."""

    category: str
    turn: int  # 0 is the first
    prompt: tuple[int, ...]

    @property
    def groups(self) -> list[str]:
        """The groups that it counts in: all, its turn, its category."""
        return [ALL, f"turn {self.turn + 1}", *([self.category] if self.category else [])]


def chosen_prompts(source: str, categories: Sequence[str], each: int) -> list[EvaluationPrompt]:
    """The first `each` prompts of every category, or of those named; 0 takes all.

    Raises:
        ValueError: The source cannot be read, or has no such category.
    """
    found = load_prompts(source)
    known = list(dict.fromkeys(prompt.category for prompt in found))
    if unknown := sorted(set(categories) - set(known)):
        raise ValueError(f"{source} has no category {unknown[0]!r}; it has {', '.join(known)}")
    taken: defaultdict[str, int] = defaultdict(int)
    chosen = []
    for prompt in found:
        if (not categories or prompt.category in categories) and (not each or taken[prompt.category] < each):
            taken[prompt.category] += 1
            chosen.append(prompt)
    return chosen


def group_names(questions: Sequence[Question]) -> list[str]:
    """All groups: the whole, the turns, the categories in the order in which they come."""
    turns = sorted({question.turn for question in questions})
    names = [ALL, *(f"turn {turn + 1}" for turn in turns)]
    return list(dict.fromkeys([*names, *(name for question in questions for name in question.groups)]))


@dataclass
class AskedEngine:
    """An `Engine` of the training package that keeps the results of its passes, one for each call."""

    process: EngineProcess
    end_tokens: tuple[int, ...]
    finished: Finished
    passes: list[dict[str, Any]]

    def __call__(self, requests: Sequence[Request]) -> list[Completion]:
        if not requests:
            return []
        first = requests[0]
        prompts = [list(request.prompt_ids) for request in requests]
        asked = Pass(prompts, first.max_tokens, first.temperature, self.end_tokens)
        result = self.process.take(asked, self.finished)
        self.passes.append(result)
        return [Completion(tuple(tokens), tokens[-1] in self.end_tokens) for tokens in result["tokens"]]


@dataclass(frozen=True)
class Asked:
    """The questions with the greedy answers of plain vLLM."""

    questions: list[Question]
    passes: list[dict[str, Any]]  # one for each turn; their requests are the questions, in this order
    left_out: int  # turns that do not fit into the window


@dataclass(frozen=True)
class Reader:
    """How the target reads and ends a conversation."""

    tokenizer: PreTrainedTokenizerBase
    template: ChatTemplate
    end_tokens: tuple[int, ...]

    @classmethod
    def of(cls, target: Path, chat_template: str | None) -> "Reader":
        """Raises ValueError where the target cannot be loaded or has no usable chat template."""
        tokenizer = AutoTokenizer.from_pretrained(target)
        template = resolve_chat_template(tokenizer, chat_template)
        return cls(tokenizer, template, tuple(read_end_tokens(str(target), tokenizer)))

    def prompt(self, turns: Sequence[Turn]) -> list[int]:
        """Token ids of the prompt for the answer to `turns`."""
        text = self.template.prompt(turns)
        return list(
            self.tokenizer(text, add_special_tokens=self.template.adds_special_tokens, verbose=False)["input_ids"]
        )

    def warm_up(self, texts: Sequence[str]) -> list[list[int]]:
        """Prompts of the first two texts, which an engine starts with."""
        return [self.prompt([Turn("user", text)]) for text in texts[:2]]


def first_turns(reader: Reader, source: str, count: int, *, max_tokens: int) -> list[list[int]]:
    """`count` first turns of at most `max_tokens` tokens, from all categories in turns.

    Raises:
        ValueError: The source cannot be read, or has fewer of them.
    """
    by_category: defaultdict[str, list[list[int]]] = defaultdict(list)
    for prompt in load_prompts(source):
        ids = reader.prompt([Turn("user", prompt.turns[0])])
        if len(ids) <= max_tokens:
            by_category[prompt.category].append(ids)
    mixed = [ids for row in zip_longest(*by_category.values()) for ids in row if ids is not None]
    if len(mixed) < count:
        raise ValueError(
            f"{source} has {len(mixed)} first turns of at most {max_tokens} tokens, and {count} are needed"
        )
    return mixed[:count]


def ask(
    process: EngineProcess,
    reader: Reader,
    prompts: Sequence[EvaluationPrompt],
    *,
    max_tokens: int,
    window: int,
    finished: Finished,
) -> Asked:
    """Ask all turns greedily; a later one follows the engine's answers to the earlier ones.

    Raises:
        ValueError: No prompt fits into the window.
    """
    engine = AskedEngine(process, reader.end_tokens, finished, [])
    answered, left_out = answer_prompts(
        engine, reader.tokenizer, reader.template, prompts, new_tokens=max_tokens, window=window
    )
    if not answered:
        raise ValueError(f"no prompt fits into a window of {window} tokens with a response of {max_tokens}")
    questions = [Question(one.category, one.turn, tuple(one.text[: one.start].tolist())) for one in answered]
    return Asked(questions, engine.passes, left_out)


def passes_of(
    questions: Sequence[Question], max_tokens: int, temperature: float, end_tokens: Sequence[int]
) -> list[Pass]:
    """One pass for each turn, as the questions were first asked, so that all methods run the same batches."""
    turns = sorted({question.turn for question in questions})
    return [
        Pass([list(q.prompt) for q in questions if q.turn == turn], max_tokens, temperature, tuple(end_tokens))
        for turn in turns
    ]
