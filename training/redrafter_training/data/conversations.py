# SPDX-License-Identifier: Apache-2.0
"""Conversations and plain texts to train on, whatever the form in which a data set stores them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, Literal

from redrafter_training.data.evaluation_prompts import is_evaluation_prompt
from redrafter_training.data.record_forms import Form, checked_text, detect_form
from redrafter_training.data.records import Record, read_records
from redrafter_training.data.report import DataError, DataReport, Reason, UnusableRecord

Role = Literal["system", "user", "assistant"]

# Records read to recognise the form: the first ones may be broken or lack a column.
DETECTION_RECORDS = 100

ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
}


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True)
class Conversation:
    """Turns of a conversation, or a raw text; exactly one of the two.

    Turns begin with at most one system turn; then user and assistant alternate, the user first. A user turn at the end
    is an unanswered prompt; a data set of prompts has only user turns. `opening` is the number of assistant turns
    before the first user turn, which were dropped because they have no prompt.
    """

    where: str
    turns: tuple[Turn, ...] = ()
    text: str | None = None
    opening: int = 0

    def __post_init__(self) -> None:
        if bool(self.turns) == (self.text is not None):
            raise ValueError(f"{self.where}: a conversation has either turns or a text")

    @property
    def asked(self) -> tuple[str, ...]:
        """What the user says, or the text."""
        if self.text is not None:
            return (self.text,)
        return tuple(turn.content for turn in self.turns if turn.role == "user")

    @property
    def answers(self) -> tuple[Turn, ...]:
        """The assistant's turns."""
        return tuple(turn for turn in self.turns if turn.role == "assistant")


def normalise(record: Record, form: Form) -> Conversation:
    """The conversation or text of a record.

    Raises:
        UnusableRecord: the record cannot be read, or its turns are not a conversation.
    """
    if record.problem is not None:
        raise record.problem
    if not isinstance(record.value, Mapping):
        raise UnusableRecord(Reason.NOT_AN_OBJECT, f"{type(record.value).__name__}")
    missing = [column for column in form.columns if record.value.get(column) is None]
    if missing:
        raise UnusableRecord(Reason.MISSING_COLUMN, ", ".join(missing))
    content = form.read(record.value)
    if isinstance(content, str):
        if not content.strip():
            raise UnusableRecord(Reason.EMPTY)
        return Conversation(record.where, text=content)
    turns, opening = _check_turns(content, prompts_only=form.prompts_only)
    return Conversation(record.where, turns=turns, opening=opening)


def usable(record: Record, form: Form, *, need_answers: bool = True, keep_evaluation: bool = False) -> Conversation:
    """The conversation or text of a record; with `need_answers` a conversation needs an assistant turn.

    Raises:
        UnusableRecord: as `normalise`, or there is no assistant turn, or, without `keep_evaluation`, the user asks what
            drafters are measured on.
    """
    conversation = normalise(record, form)
    if need_answers and conversation.text is None and not conversation.answers:
        raise UnusableRecord(Reason.NO_ASSISTANT)
    if not keep_evaluation and any(map(is_evaluation_prompt, conversation.asked)):
        raise UnusableRecord(Reason.EVALUATION)
    return conversation


def _check_turns(raw: list[tuple[str, Any]], *, prompts_only: bool) -> tuple[tuple[Turn, ...], int]:
    """The turns of a conversation, and the number of assistant turns before the first user turn.

    With `prompts_only` the user may have several turns in a row, each to be answered before the next one.
    """
    turns = [_check_turn(number, role, content) for number, (role, content) in enumerate(raw)]
    if turns and turns[0].role == "system" and not turns[0].content.strip():
        del turns[0]  # no system prompt, in data sets that always have the turn
    if not turns:
        raise UnusableRecord(Reason.EMPTY)
    for number, turn in enumerate(turns):
        if not turn.content.strip():
            raise UnusableRecord(Reason.EMPTY, f"the {turn.role}'s turn {number}")
    system, others = (turns[:1], turns[1:]) if turns[0].role == "system" else ([], turns)
    if not others:
        raise UnusableRecord(Reason.NO_ASSISTANT, "a system turn only")
    opening = next((number for number, turn in enumerate(others) if turn.role != "assistant"), 0)
    others = others[opening:]
    expected: tuple[Role, ...] = ("user", "assistant")
    in_order = all(turn.role == expected[i % 2] for i, turn in enumerate(others))
    if not in_order and not (prompts_only and all(turn.role == "user" for turn in others)):
        raise UnusableRecord(Reason.ROLE_ORDER, ", ".join(turn.role for turn in turns))
    return (*system, *others), opening


def _check_turn(number: int, role: Any, content: Any) -> Turn:
    known = ROLES.get(role) if isinstance(role, str) else None
    if known is None:
        raise UnusableRecord(Reason.UNKNOWN_ROLE, f"{role!r} in turn {number}")
    return Turn(known, checked_text(content, f"turn {number}"))


def iter_conversations(
    source: str,
    report: DataReport,
    *,
    config: str | None = None,
    split: str | None = None,
    need_answers: bool = True,
    keep_evaluation: bool = False,
) -> Iterator[Conversation]:
    """The usable conversations of one data set, in order; the others are counted in `report`.

    `report.used` counts the yielded conversations. Without `need_answers`, conversations without an assistant turn are
    usable too, as prompts for the target; with `keep_evaluation` those with a prompt that drafters are measured on.

    Raises:
        DataError: the source cannot be read, has no known form, or has no usable record.
    """
    own = DataReport()
    records = read_records(source, config=config, split=split)
    head = list(islice(records, DETECTION_RECORDS))
    if not head:
        raise DataError(f"{source} holds no records")
    form = detect_form(head, source, need_answers=need_answers)
    try:
        for record in chain(head, records):
            try:
                conversation = usable(record, form, need_answers=need_answers, keep_evaluation=keep_evaluation)
            except UnusableRecord as problem:
                own.skip(record.where, problem)
                continue
            own.used += 1
            own.opening += conversation.opening > 0
            yield conversation
    finally:
        report.merge(own)
    own.require_used(source)


def load_conversations(
    sources: Sequence[str], *, config: str | None = None, split: str | None = None, **choice: bool
) -> tuple[list[Conversation], DataReport]:
    """All usable conversations of some data sets, which may differ in form, and the report on their records.

    `choice` are the other keywords of `iter_conversations`.

    Raises:
        DataError: as `iter_conversations`, or no source is given.
    """
    if not sources:
        raise DataError("no data set given")
    report = DataReport()
    conversations = [
        conversation
        for source in sources
        for conversation in iter_conversations(source, report, config=config, split=split, **choice)
    ]
    return conversations, report


def load_splits(
    source: str, config: str | None, split: str | None, held_out_split: str | None, **choice: bool
) -> tuple[list[Conversation], range, DataReport]:
    """The conversations of a data set and then of its held-out split, if given; the indices of the latter; the report.

    `choice` as in `load_conversations`.

    Raises:
        DataError: as `iter_conversations`.
    """
    conversations, report = load_conversations([source], config=config, split=split, **choice)
    count = len(conversations)
    if held_out_split is not None:
        held_out, further = load_conversations([source], config=config, split=held_out_split, **choice)
        conversations += held_out
        report.merge(further)
    return conversations, range(count, len(conversations)), report
