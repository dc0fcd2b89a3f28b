# SPDX-License-Identifier: Apache-2.0
"""Texts that the target has written, token by token as it was asked and as it answered."""

from dataclasses import dataclass

from training.data_report import Reason


@dataclass(frozen=True)
class Answer:
    """One answer and the whole of what was asked before it."""

    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]  # with the token that ended it, if one did
    text: str  # of the answer, without special tokens
    ended: bool  # by itself, not by the window


@dataclass(frozen=True)
class Answered:
    """What became of a task: its answers in order, or the reason why it has none."""

    index: int
    where: str
    held_out: bool
    temperature: float
    answers: tuple[Answer, ...]
    left_out: int = 0  # later turns of the conversation that could not be reached
    skipped: Reason | None = None
    detail: str = ""

    @property
    def tokens(self) -> int:
        return sum(len(answer.answer_ids) for answer in self.answers)
