# SPDX-License-Identifier: Apache-2.0
"""Generates the responses of tasks, turn by turn, through any `Engine`."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from redrafter_training.data.chat_templates import resolve_chat_template
from redrafter_training.data.conversations import Turn
from redrafter_training.data.rendering import ChatTemplate
from redrafter_training.data.report import Reason, UnusableRecord
from redrafter_training.data.text_keys import text_key
from redrafter_training.responses.config import ResponseJob
from redrafter_training.responses.engine import Completion, Engine, Request
from redrafter_training.responses.records import Response, Task, TaskResult
from redrafter_training.target.properties import beyond_embedding


def request_seed(seed: int, index: int, turn: int) -> int:
    """In 0..2^63-1, the same for a response wherever and whenever it is sampled."""
    return int.from_bytes(hashlib.sha256(f"{seed} {index} {turn}".encode()).digest()[:8]) >> 1


class ResponseGenerator:
    """Generates the responses of tasks.

    In a conversation every turn of the assistant is generated in order, after the earlier responses; the user's turns
    stay the same whatever the responses. A conversation ends early after a response that is empty or cut by the window,
    and where the window has no room for another one.

    Args:
        vocab_size: rows of the target's embedding, if known.
    """

    def __init__(
        self, job: ResponseJob, tokenizer: PreTrainedTokenizerBase, engine: Engine, vocab_size: int | None = None
    ) -> None:
        self._job = job
        self._tokenizer = tokenizer
        self._engine = engine
        self._vocab_size = vocab_size
        self._template: ChatTemplate | None = None

    def __call__(self, tasks: Sequence[Task]) -> list[TaskResult]:
        dialogues = [_Dialogue(task) for task in tasks]
        live = dialogues
        while live := [dialogue for dialogue in live if self._advance(dialogue)]:
            completions = self._engine([self._request(dialogue) for dialogue in live])
            for dialogue, completion in zip(live, completions, strict=True):
                self._add_response(dialogue, completion)
        return [self._result(dialogue) for dialogue in dialogues]

    def _advance(self, dialogue: "_Dialogue") -> bool:
        """Computes the next prompt; whether there is one."""
        if dialogue.over or not dialogue.prompts_left:
            return False
        try:
            dialogue.prompt_ids = self._prompt_ids(dialogue)
        except UnusableRecord as problem:
            dialogue.problem = problem
            return False
        return True

    def _prompt_ids(self, dialogue: "_Dialogue") -> tuple[int, ...]:
        if dialogue.task.prompt_ids:
            return self._checked(dialogue.task.prompt_ids, self._job.window - 1)
        dialogue.add_prompt()
        if self._template is None:
            self._template = resolve_chat_template(
                self._tokenizer, self._job.chat_template, self._job.chat_template_kwargs
            )
        text = self._template.prompt(dialogue.turns)
        encoded = self._tokenizer(text, add_special_tokens=self._template.adds_special_tokens, verbose=False)
        # A first response cut short by a long prompt teaches little, a later one comes at no further cost.
        max_tokens = self._job.window - 1 if dialogue.responses else self._job.window // 2
        return self._checked(tuple(encoded["input_ids"]), max_tokens)

    def _checked(self, ids: tuple[int, ...], max_tokens: int) -> tuple[int, ...]:
        if not 1 <= len(ids) <= max_tokens:
            raise UnusableRecord(
                Reason.PROMPT_TOO_LONG, f"{len(ids)} tokens, at most {max_tokens} fit --window {self._job.window}"
            )
        if beyond := beyond_embedding(ids, self._vocab_size, self._tokenizer):
            raise UnusableRecord(Reason.BEYOND_EMBEDDING, beyond)
        return ids

    def _temperature(self, task: Task) -> float:
        return self._job.temperatures[task.index % len(self._job.temperatures)]

    def _request(self, dialogue: "_Dialogue") -> Request:
        return Request(
            dialogue.prompt_ids,
            self._job.window - len(dialogue.prompt_ids),
            self._temperature(dialogue.task),
            request_seed(self._job.seed, dialogue.task.index, len(dialogue.responses)),
            self._job.longest_repeat,
        )

    def _add_response(self, dialogue: "_Dialogue", completion: Completion) -> None:
        text = self._decode(completion.token_ids)
        dialogue.responses.append(Response(dialogue.prompt_ids, completion.token_ids, text, completion.ended))
        dialogue.turns.append(Turn("assistant", text))
        dialogue.over = not (completion.ended and text.strip())

    def _result(self, dialogue: "_Dialogue") -> TaskResult:
        task, problem = dialogue.task, None if dialogue.responses else dialogue.problem
        return TaskResult(
            task.index,
            task.where,
            task.held_out,
            self._temperature(task),
            tuple(dialogue.responses),
            dialogue.prompts_left if dialogue.responses else 0,
            problem.reason if problem else None,
            problem.detail if problem else "",
            self._prompt_keys(task),
        )

    def _prompt_keys(self, task: Task) -> tuple[int, ...]:
        """The keys of the prompts, as the data has them."""
        if task.turns:
            return tuple(text_key(turn.content) for turn in task.turns if turn.role == "user")
        return (text_key(self._decode(task.prompt_ids)),)

    def _decode(self, ids: Sequence[int]) -> str:
        text = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text


@dataclass
class _Dialogue:
    """How far a task is."""

    task: Task
    turns: list[Turn] = field(default_factory=list)  # so far, with responses in place of the data's answers
    responses: list[Response] = field(default_factory=list)
    prompt_ids: tuple[int, ...] = ()  # of the next response
    over: bool = False
    problem: UnusableRecord | None = None

    @property
    def prompts_left(self) -> int:
        prompts = sum(turn.role == "user" for turn in self.task.turns) or 1
        return prompts - len(self.responses)

    def add_prompt(self) -> None:
        """Adds the turns up to the user's next one; the data's own answers are left out."""
        given = [turn for turn in self.task.turns if turn.role != "assistant"]
        for turn in given[sum(turn.role != "assistant" for turn in self.turns) :]:
            self.turns.append(turn)
            if turn.role == "user":
                return
