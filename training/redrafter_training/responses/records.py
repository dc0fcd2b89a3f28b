# SPDX-License-Identifier: Apache-2.0
"""Tasks for the target, and its responses to them."""

from dataclasses import dataclass
from typing import Any

from redrafter_training.data.conversations import Turn
from redrafter_training.data.report import Reason


@dataclass(frozen=True)
class Task:
    """One text to generate: after a stretch of another text, or as the assistant of a conversation.

    Exactly one of `prompt_ids` and `turns` is given. Of `turns` the user's are kept; the assistant's, which the data
    has, are replaced by responses.
    """

    index: int  # its place among all tasks of the job, which shards and workers do not change
    where: str
    held_out: bool
    prompt_ids: tuple[int, ...] = ()
    turns: tuple[Turn, ...] = ()

    def __post_init__(self) -> None:
        if bool(self.prompt_ids) == bool(self.turns):
            raise ValueError(f"{self.where}: a task has either prompt_ids or turns")


@dataclass(frozen=True)
class Response:
    """One response, and all tokens before it."""

    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]  # with the end token, if it ended with one
    text: str  # of the response, without special tokens
    ended: bool  # with an end token of the target


@dataclass(frozen=True)
class TaskResult:
    """What became of a task: its responses in order, or the reason why it has none."""

    index: int
    where: str
    held_out: bool
    temperature: float
    responses: tuple[Response, ...]
    left_out: int = 0  # later turns of the conversation that could not be reached
    skipped: Reason | None = None
    detail: str = ""
    prompts: tuple[int, ...] = ()  # keys of the prompts, see `redrafter_training.data.splits`

    @property
    def tokens(self) -> int:
        return sum(len(response.token_ids) for response in self.responses)

    def to_json(self) -> dict[str, Any]:
        """As a line of a shard stores it."""
        return {
            "index": self.index,
            "where": self.where,
            "held_out": self.held_out,
            "temperature": self.temperature,
            "answers": [
                {
                    "prompt_ids": response.prompt_ids,
                    "answer_ids": response.token_ids,
                    "text": response.text,
                    "ended": response.ended,
                }
                for response in self.responses
            ],
            "left_out": self.left_out,
            "skipped": self.skipped,
            "detail": self.detail,
            "prompts": self.prompts,
        }

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> "TaskResult":
        """
        Raises:
            KeyError, TypeError, ValueError: `stored` is not a line of a shard.
        """
        responses = tuple(
            Response(tuple(entry["prompt_ids"]), tuple(entry["answer_ids"]), entry["text"], entry["ended"])
            for entry in stored.pop("answers")
        )
        reason = stored.pop("skipped")
        # Shards of earlier versions have no prompts.
        prompts = tuple(stored.pop("prompts", ()))
        return cls(**stored, responses=responses, skipped=Reason(reason) if reason else None, prompts=prompts)
