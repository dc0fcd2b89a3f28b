# SPDX-License-Identifier: Apache-2.0
"""Texts to be written by the target, and what it has written, token by token."""

from dataclasses import dataclass

from redrafter_training.data.conversations import Turn
from redrafter_training.data.report import Reason


@dataclass(frozen=True)
class Task:
    """One text to be written: after a piece of another, or as the assistant of a conversation; exactly one of the two.

    The user's side of `turns` is kept, the assistant's is what the data has and will be replaced.
    """

    index: int  # its place among all texts of the regeneration, whatever shards and workers there are
    where: str
    held_out: bool
    prompt_ids: tuple[int, ...] = ()
    turns: tuple[Turn, ...] = ()

    def __post_init__(self) -> None:
        if bool(self.prompt_ids) == bool(self.turns):
            raise ValueError(f"{self.where}: a text is written either after a piece of text or in a conversation")


@dataclass(frozen=True)
class Answer:
    """One answer and the whole of what was asked before it."""

    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]  # with the token that ended it, if one did
    text: str  # of the answer, without special tokens
    ended: bool  # by itself, not by the window


@dataclass(frozen=True)
class TaskResult:
    """What became of a task: its answers in order, or the reason why it has none."""

    index: int
    where: str
    held_out: bool
    temperature: float
    answers: tuple[Answer, ...]
    left_out: int = 0  # later turns of the conversation that could not be reached
    skipped: Reason | None = None
    detail: str = ""
    prompts: tuple[int, ...] = ()  # keys of what was asked, for `redrafter_training.data.splits`

    @property
    def tokens(self) -> int:
        return sum(len(answer.answer_ids) for answer in self.answers)
