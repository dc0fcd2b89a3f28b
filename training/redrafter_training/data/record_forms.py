# SPDX-License-Identifier: Apache-2.0
"""The forms in which data sets store conversations, texts and prompts: how to recognise and read them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from redrafter_training.data.records import Record
from redrafter_training.data.report import DataError, Reason, UnusableRecord
from redrafter_vllm.utils.messages import shortened

NAMED_COLUMNS = 12  # in an error
TOOL_ROLES = ("tool", "function", "ipython")
THINK_START, THINK_END = "<think>", "</think>"  # tags around a thought
_THOUGHT_COLUMNS = ("reasoning_content", "reasoning")


@dataclass(frozen=True)
class Form:
    """One way to store conversations: how to recognise it, and how to read a record."""

    name: str
    columns: tuple[str, ...]
    read: Callable[[Mapping[str, Any]], list[tuple[str, Any]] | str]
    turn_keys: tuple[str, str] | None = None
    prompts_only: bool = False  # for response generation: nothing that could be trained on

    def fits(self, record: Mapping[str, Any]) -> bool:
        """Whether the record has this form's columns and, for a list of turns, this form's keys in the first one."""
        if any(record.get(column) is None for column in self.columns):
            return False
        if self.turn_keys is None:
            return True
        turns = _turn_list(record[self.columns[0]])
        return bool(turns) and isinstance(turns[0], Mapping) and set(self.turn_keys) <= set(turns[0])


def _turn_list(turns: Any) -> Sequence[Any]:
    """The turns as a list; `datasets` returns some lists of objects as an object of lists."""
    if isinstance(turns, Mapping) and turns and all(isinstance(column, list) for column in turns.values()):
        return [dict(zip(turns, row, strict=False)) for row in zip(*turns.values(), strict=False)]
    if not isinstance(turns, Sequence) or isinstance(turns, str):
        raise UnusableRecord(Reason.NOT_A_LIST, f"{type(turns).__name__}")
    return turns


def _turns_form(name: str, column: str, role_key: str, content_key: str) -> Form:
    def read(record: Mapping[str, Any]) -> list[tuple[str, Any]]:
        return _read_turns(record[column], role_key, content_key)

    return Form(name, (column,), read, (role_key, content_key))


def _read_turns(turns: Any, role_key: str, content_key: str) -> list[tuple[str, Any]]:
    """Role and content of each turn before the first tool call or tool result."""
    read: list[tuple[str, Any]] = []
    for number, turn in enumerate(_turn_list(turns)):
        if not isinstance(turn, Mapping) or role_key not in turn or content_key not in turn:
            raise UnusableRecord(Reason.BAD_TURN, f"turn {number} needs {role_key!r} and {content_key!r}")
        if turn.get("tool_calls") or turn[role_key] in TOOL_ROLES:
            if not read or read[-1][0] == "system":
                raise UnusableRecord(Reason.TOOLS)
            return read
        read.append((turn[role_key], with_thought(turn, _joined(turn[content_key], number))))
    return read


def _joined(content: Any, number: int) -> Any:
    """The text of content parts; other content unchanged."""
    if not isinstance(content, Sequence) or isinstance(content, str):
        return content
    for part in content:
        if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise UnusableRecord(Reason.NO_TEXT, f"a part of turn {number}")
    return "".join(part["text"] for part in content)


def _read_prompt(record: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Prompt and completion, if there is one: each a text or a list of messages."""
    turns: list[tuple[str, Any]] = []
    for role, said in (("user", record["prompt"]), ("assistant", record.get("completion"))):
        if said is not None:
            turns += [(role, said)] if isinstance(said, str) else _read_turns(said, "role", "content")
    return turns


def _read_prompts(record: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [("user", said) for said in _turn_list(record["turns"])]


def _read_alpaca(record: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The prompt is the instruction and the input, with a blank line between them."""
    instruction, given = record["instruction"], record.get("input")
    if isinstance(instruction, str) and given is not None and given != "":
        instruction = f"{instruction}\n\n" + checked_text(given, "'input'")
    return [("user", instruction), ("assistant", record["output"])]


def _read_text(record: Mapping[str, Any]) -> str:
    return checked_text(record["text"], "'text'")


def checked_text(value: Any, name: str) -> str:
    """`value`, if it is a string that can be encoded; raises UnusableRecord otherwise."""
    if not isinstance(value, str):
        raise UnusableRecord(Reason.NOT_A_STRING, f"{name} is of type {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        # JSON can contain half of a surrogate pair, which tokenizers cannot process.
        raise UnusableRecord(Reason.BROKEN_TEXT, f"{name}: {error}") from error
    return value


# In order of preference, if a data set has the columns of several forms. Published data sets use both column names with
# both pairs of keys.
FORMS = (
    _turns_form("ShareGPT", "conversations", "from", "value"),
    _turns_form("OpenAI messages", "messages", "role", "content"),
    _turns_form("OpenAI messages under 'conversations'", "conversations", "role", "content"),
    _turns_form("ShareGPT under 'messages'", "messages", "from", "value"),
    _turns_form("LMSYS", "conversation", "role", "content"),
    Form("Alpaca", ("instruction", "output"), _read_alpaca),
    Form("MT-Bench", ("turns",), _read_prompts, prompts_only=True),
    Form("prompt and completion", ("prompt", "completion"), _read_prompt),
    Form("prompts", ("prompt",), _read_prompt, prompts_only=True),
    Form("plain text", ("text",), _read_text),
)
KNOWN_FORMS = """\
  ShareGPT         {"conversations": [{"from": "human" | "gpt" | "system", "value": …}, …]}
  OpenAI messages  {"messages": [{"role": "user" | "assistant" | "system", "content": …}, …]}
  LMSYS            {"conversation": [{"role": …, "content": …}, …]}
  Alpaca           {"instruction": …, "input": … (optional), "output": …}
  prompt           {"prompt": text or messages, "completion": text or messages}
  plain text       {"text": …}, or a .txt file
and for response generation also
  MT-Bench         {"turns": [prompt, …]}
  prompts          {"prompt": text or messages}"""


def detect_form(records: Sequence[Record], source: str, *, need_answers: bool = True) -> Form:
    """The form of a data set, recognised by its first records; with `need_answers` not one that holds prompts alone.

    Raises:
        DataError: no record fits a known form; names the columns that were found and the known forms.
    """
    values = [r.value for r in records if isinstance(r.value, Mapping)]
    for form in FORMS:
        if need_answers and form.prompts_only:
            continue
        for value in values:
            try:
                if form.fits(value):
                    return form
            except UnusableRecord:
                continue
    columns = sorted({shortened(str(column)) for value in values for column in value})
    more = f" and {len(columns) - NAMED_COLUMNS} more" if len(columns) > NAMED_COLUMNS else ""
    found = f"columns {', '.join(columns[:NAMED_COLUMNS])}{more}" if columns else "no object with columns"
    broken = [f"{r.where}: {shortened(str(r.problem))}" for r in records if r.problem is not None][:3]
    unread = "".join(f"\n  unreadable: {line}" for line in broken)
    raise DataError(f"{source}: cannot tell the form of the data; found {found}; known forms:\n{KNOWN_FORMS}{unread}")


def with_thought(turn: Mapping[str, Any], content: Any) -> Any:
    """`content`, preceded by the thought that some data sets and engines store in a separate field."""
    thought = next((turn[key] for key in _THOUGHT_COLUMNS if turn.get(key)), None)
    if not isinstance(thought, str) or not isinstance(content, str) or THINK_END in content:
        return content
    return f"{THINK_START}\n{thought.strip()}\n{THINK_END}\n\n{content}"
