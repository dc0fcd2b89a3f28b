# SPDX-License-Identifier: Apache-2.0
"""Tasks answered turn by turn, by whatever samples batches of requests."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from redrafter_training.data.chat_templates import ChatTemplate, resolve_chat_template
from redrafter_training.data.conversations import Turn
from redrafter_training.data.report import Reason, UnusableRecord
from redrafter_training.data.splits import text_key
from redrafter_training.responses.config import ResponseJob
from redrafter_training.responses.records import Answer, Task, TaskResult
from redrafter_training.target.properties import beyond_embedding


@dataclass(frozen=True)
class Request:
    """One answer to be sampled."""

    prompt_ids: tuple[int, ...]
    max_tokens: int
    temperature: float
    seed: int
    longest_repeat: int = 0  # stops when a stretch of so many tokens or more has been said twice in a row; 0 does not


@dataclass(frozen=True)
class Completion:
    """The tokens sampled for a request, and whether they ended by themselves."""

    token_ids: tuple[int, ...]
    ended: bool


Complete = Callable[[Sequence[Request]], list[Completion]]


def request_seed(seed: int, index: int, turn: int) -> int:
    """In 0..2^63-1, the same for an answer wherever and whenever it is sampled."""
    return int.from_bytes(hashlib.sha256(f"{seed} {index} {turn}".encode()).digest()[:8]) >> 1


class ResponseGenerator:
    """Answers tasks through `complete`, which samples a batch of requests.

    In a conversation every turn of the assistant is answered in order, after the answers given before, as if its user
    had said the same whatever the answers. It ends early after an answer that the window cut or that is empty, and
    where the window has no room for another.

    Args:
        vocab_size: rows of the target's embedding, if known.
    """

    def __init__(
        self,
        job: ResponseJob,
        tokenizer: PreTrainedTokenizerBase,
        complete: Complete,
        vocab_size: int | None = None,
    ) -> None:
        self._vocab_size = vocab_size
        self._job = job
        self._tokenizer = tokenizer
        self._complete = complete
        self._template: ChatTemplate | None = None

    def __call__(self, tasks: Sequence[Task]) -> list[TaskResult]:
        dialogues = [_Dialogue(task) for task in tasks]
        live = dialogues
        while live := [dialogue for dialogue in live if self._ask(dialogue)]:
            completions = self._complete([self._request(dialogue) for dialogue in live])
            for dialogue, completion in zip(live, completions, strict=True):
                self._take(dialogue, completion)
        return [self._result(dialogue) for dialogue in dialogues]

    def _ask(self, dialogue: "_Dialogue") -> bool:
        """Works out the next prompt; whether there is one to be answered."""
        if dialogue.over or not dialogue.prompts_left:
            return False
        try:
            dialogue.asked = self._prompt_ids(dialogue)
        except UnusableRecord as problem:
            dialogue.problem = problem
            return False
        return True

    def _prompt_ids(self, dialogue: "_Dialogue") -> tuple[int, ...]:
        if dialogue.task.prompt_ids:
            return self._checked(dialogue.task.prompt_ids, self._job.window - 1)
        dialogue.advance()
        if self._template is None:
            self._template = resolve_chat_template(
                self._tokenizer, self._job.chat_template, self._job.chat_template_kwargs
            )
        text = self._template.prompt(dialogue.said)
        encoded = self._tokenizer(text, add_special_tokens=self._template.adds_special_tokens, verbose=False)
        # A first answer cut short by a long prompt teaches little, a later one comes at no further cost.
        max_tokens = self._job.window - 1 if dialogue.answers else self._job.window // 2
        return self._checked(tuple(encoded["input_ids"]), max_tokens)

    def _checked(self, ids: tuple[int, ...], max_tokens: int) -> tuple[int, ...]:
        if not 1 <= len(ids) <= max_tokens:
            raise UnusableRecord(
                Reason.PROMPT_TOO_LONG, f"{len(ids)} tokens, at most {max_tokens} in --window {self._job.window}"
            )
        if beyond := beyond_embedding(ids, self._vocab_size, self._tokenizer):
            raise UnusableRecord(Reason.BEYOND_EMBEDDING, beyond)
        return ids

    def _temperature(self, task: Task) -> float:
        return self._job.temperatures[task.index % len(self._job.temperatures)]

    def _request(self, dialogue: "_Dialogue") -> Request:
        return Request(
            dialogue.asked,
            self._job.window - len(dialogue.asked),
            self._temperature(dialogue.task),
            request_seed(self._job.seed, dialogue.task.index, len(dialogue.answers)),
            self._job.longest_repeat,
        )

    def _take(self, dialogue: "_Dialogue", completion: Completion) -> None:
        text = self._tokenizer.decode(
            completion.token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        dialogue.answers.append(Answer(dialogue.asked, completion.token_ids, text, completion.ended))
        dialogue.said.append(Turn("assistant", text))
        dialogue.over = not (completion.ended and text.strip())

    def _result(self, dialogue: "_Dialogue") -> TaskResult:
        task, problem = dialogue.task, dialogue.problem if not dialogue.answers else None
        return TaskResult(
            task.index,
            task.where,
            task.held_out,
            self._temperature(task),
            tuple(dialogue.answers),
            dialogue.prompts - len(dialogue.answers) if dialogue.answers else 0,
            problem.reason if problem else None,
            problem.detail if problem else "",
            self._asked(task),
        )

    def _asked(self, task: Task) -> tuple[int, ...]:
        """The keys of the prompts, in the words of the data."""
        if task.turns:
            return tuple(text_key(turn.content) for turn in task.turns if turn.role == "user")
        piece = self._tokenizer.decode(task.prompt_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return (text_key(piece),)


@dataclass
class _Dialogue:
    """How far a task is."""

    task: Task
    said: list[Turn] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    asked: tuple[int, ...] = ()
    over: bool = False
    problem: UnusableRecord | None = None

    @property
    def prompts(self) -> int:
        return sum(turn.role == "user" for turn in self.task.turns) or 1

    @property
    def prompts_left(self) -> int:
        return self.prompts - len(self.answers)

    def advance(self) -> None:
        """Adds what is said up to the next turn of the user; the data's own answers are left out."""
        prompts = [turn for turn in self.task.turns if turn.role != "assistant"]
        for turn in prompts[sum(turn.role != "assistant" for turn in self.said) :]:
            self.said.append(turn)
            if turn.role == "user":
                return
