# SPDX-License-Identifier: Apache-2.0
"""A report on the records of the training data: used, or left out with a reason."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from redrafter_vllm.utils.messages import shortened

EXAMPLES_PER_REASON = 3


class Reason(StrEnum):
    """Why a record cannot be used."""

    BROKEN_JSON = "broken JSON"
    BROKEN_TEXT = "not UTF-8"
    NOT_AN_OBJECT = "not an object"
    MISSING_COLUMN = "column missing"
    NOT_A_LIST = "turns are not a list"
    BAD_TURN = "turn without role or content"
    UNKNOWN_ROLE = "unknown role"
    NOT_A_STRING = "not a string"
    EMPTY = "empty"
    TOOLS = "only tool calls"
    NO_TEXT = "content that is not text"
    NO_ASSISTANT = "no assistant turn"
    ROLE_ORDER = "roles out of order"
    REFUSED_BY_TEMPLATE = "refused by the chat template"
    TEMPLATE_MISMATCH = "chat template changes the turns"
    PROMPT_TOO_LONG = "prompt too long"
    BEYOND_EMBEDDING = "token without a row in the target's embedding"
    NO_PROMPT = "no prompt that is not in the other texts"
    EVALUATION = "holds a prompt of MT-Bench or Spec-Bench (--evaluation-prompts keep takes it)"
    NOTHING_TO_LEARN = "no loss token within the maximum length"


class UnusableRecord(Exception):  # noqa: N818 - counted, not fatal
    """A record cannot be used; the loop over the records counts it."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else str(reason))
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type["UnusableRecord"], tuple[Reason, str]]:
        return UnusableRecord, (self.reason, self.detail)


class DataError(ValueError):
    """The data as a whole cannot be trained on; the message says why and what to do."""


@dataclass(frozen=True)
class Skipped:
    """One record left out: its position (`file:line`, `file[index]`) and what is wrong with it."""

    where: str
    detail: str


@dataclass
class DataReport:
    """Counts of records used and left out, with the first few records of each reason.

    `truncated` records are used, but without `cut_tokens` tokens beyond the maximum length. `opening` records are used
    without the assistant's turn before the user's first one.
    """

    used: int = 0
    truncated: int = 0
    cut_tokens: int = 0
    opening: int = 0
    counts: dict[Reason, int] = field(default_factory=dict)
    examples: dict[Reason, list[Skipped]] = field(default_factory=dict)

    @property
    def skipped(self) -> int:
        return sum(self.counts.values())

    @property
    def records(self) -> int:
        return self.used + self.skipped

    def skip(self, where: str, problem: UnusableRecord) -> None:
        self._add(problem.reason, 1, [Skipped(where, problem.detail)])

    def reject(self, where: str, problem: UnusableRecord) -> None:
        """Leave out a record that has been counted as used until now."""
        self.used -= 1
        self.skip(where, problem)

    def merge(self, other: "DataReport") -> None:
        """Add the counts of another part of the same data (another source, another worker)."""
        self.used += other.used
        self.truncated += other.truncated
        self.cut_tokens += other.cut_tokens
        self.opening += other.opening
        for reason, count in other.counts.items():
            self._add(reason, count, other.examples[reason])

    def _add(self, reason: Reason, count: int, examples: list[Skipped]) -> None:
        self.counts[reason] = self.counts.get(reason, 0) + count
        kept = self.examples.setdefault(reason, [])
        kept.extend(examples[: EXAMPLES_PER_REASON - len(kept)])

    def require_used(self, source: str) -> None:
        """Checks that some record was used.

        Raises:
            DataError: there was no record at all, or none could be used; the message contains the table.
        """
        if not self.records:
            raise DataError(f"{source} holds no records")
        if not self.used:
            raise DataError(f"none of the {self.records} records of {source} can be used\n{self}")

    def _lines(self) -> Iterator[str]:
        yield f"{'records':>9}  outcome"
        yield f"{self.used:>9}  used"
        if self.truncated:
            yield f"{self.truncated:>9}    of these truncated ({self.cut_tokens} tokens cut)"
        if self.opening:
            yield f"{self.opening:>9}    of these without the assistant's turn at the beginning: it answers nothing"
        for reason, count in sorted(self.counts.items(), key=lambda item: (-item[1], item[0])):
            yield f"{count:>9}  skipped: {reason}"
            for example in self.examples[reason]:
                detail = shortened(example.detail)
                yield f"{'':>9}    {example.where}" + (f": {detail}" if detail else "")

    def __str__(self) -> str:
        return "\n".join(self._lines())
