# SPDX-License-Identifier: Apache-2.0
"""Conversations rendered by a chat template, with the spans of text that are the assistant's.

The spans are found by rendering, not by markers in the template, so that any template works: the same conversation with
placeholders for the answers shows where the answers are, and the prompt of each answer, rendered as in serving, must be
the beginning of the conversation.

Templates of thinking models render an earlier answer differently from the last one: they drop its thought. Then no
single text contains what the target has seen at every answer, and each answer gets its own text, with the conversation
before it as in its prompt.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from redrafter_training.data.conversations import Conversation, Turn
from redrafter_training.data.record_forms import THINK_END, THINK_START
from redrafter_training.data.report import DataError, Reason, UnusableRecord
from redrafter_vllm.utils.messages import sentence

# Characters of a private-use area: no trim filter removes them, and ordinary texts do not contain them.
_PLACEHOLDER = "\uf1d0answer\uf1d1"
_TRIMS: tuple[Callable[[str], str], ...] = (str, str.strip, str.rstrip, str.lstrip)


def _probe(*answers: str) -> Conversation:
    first, second = (Turn("assistant", answer) for answer in answers)
    return Conversation("probe", (Turn("user", "Is it?"), first, Turn("user", "And then?"), second))


PROBES = (
    _probe("It is.", "Then it was."),
    # For templates whose prompts begin a thought, where an answer must contain one.
    _probe("<think>\nHm.\n</think>\n\nIt is.", "<think>\nThen?\n</think>\n\nThen it was."),
)


@dataclass(frozen=True)
class Rendered:
    """A conversation as text, and the spans of the assistant: [start, end) in characters, ascending.

    The first `earlier` answers of the conversation have no span: they are part of the prompt. The prompt for the answer
    of the first span has `asked` characters; the template may insert text between the two.
    """

    text: str
    spans: tuple[tuple[int, int], ...]
    earlier: int = 0
    asked: int = 0


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template bound to a tokenizer.

    `template` is Jinja source, or None for the tokenizer's own. With `adds_special_tokens` the tokenizer, not the
    template, adds BOS. `options` are variables for the template, for instance `enable_thinking`.
    """

    tokenizer: PreTrainedTokenizerBase
    name: str
    template: str | None = None
    adds_special_tokens: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    closing: re.Pattern[str] | None = field(init=False)  # matches a token that may close an answer

    def __post_init__(self) -> None:
        object.__setattr__(self, "closing", _closing_pattern(self.tokenizer))
        problems = [self._probe_problem(probe) for probe in PROBES]
        if all(problems):
            raise DataError(
                f"{self.name} cannot be trained with: {problems[0]}. Try another one, or other variables for it "
                "(--chat-template, --chat-template-kwargs)"
            )

    def _probe_problem(self, probe: Conversation) -> str | None:
        try:
            shown = sum(len(rendered.spans) for rendered in self.render(probe))
        except UnusableRecord as problem:
            return problem.detail or str(problem)
        return None if shown == len(probe.answers) else f"it renders {shown} of {len(probe.answers)} answers"

    def render(self, conversation: Conversation) -> list[Rendered]:
        """The conversation up to its last answer: one text, or several if the template renders earlier answers
        differently. Every answer is in one of them.

        A span begins where the prompt for the answer ends, includes a space before the answer, and ends with the
        special token that closes the answer (EOS or end of turn), if there is one. A thought is part of its answer.
        Text that the template inserts before an answer but not into its prompt, for instance an empty thought, is not
        in the span; nor is the beginning of an answer that its prompt already contains.

        Raises:
            UnusableRecord: the template refuses the conversation, changes an answer, or renders an answer's prompt
                differently from the conversation.
        """
        last = _answer_numbers(conversation.turns)[-1]
        turns = conversation.turns[: last + 1]
        try:
            return [self._whole(turns)]
        except UnusableRecord as problem:
            if problem.reason != Reason.TEMPLATE_MISMATCH:
                raise
        return self._answer_by_answer(turns)

    def _whole(self, turns: Sequence[Turn]) -> Rendered:
        """All answers in one text."""
        text = self._apply(turns)
        spans, asked = [], []
        for number, (start, end) in zip(_answer_numbers(turns), self._find_answers(text, turns), strict=True):
            prompt = self._apply(turns[:number], add_generation_prompt=True)
            spans.append((self._begin(text, prompt, start, number), self._closing_end(text, end)))
            asked.append(len(prompt))
        return Rendered(text, tuple(spans), asked=asked[0])

    def _answer_by_answer(self, turns: Sequence[Turn]) -> list[Rendered]:
        """Each answer after its own prompt, in the text of the previous answer if the prompt begins with that text."""
        made: list[Rendered] = []
        for earlier, number in enumerate(_answer_numbers(turns)):
            prompt = self._apply(turns[:number], add_generation_prompt=True)
            text, span = self._last_answer(turns[: number + 1], prompt)
            if made and prompt.startswith(made[-1].text):
                before = made.pop()
                begin, end = before.spans[-1]
                if end == len(before.text):  # some templates close an answer with the token of the next turn
                    end = self._closing_end(text, end)
                made.append(replace(before, text=text, spans=(*before.spans[:-1], (begin, end), span)))
            else:
                made.append(Rendered(text, (span,), earlier, len(prompt)))
        return made

    def _last_answer(self, turns: Sequence[Turn], prompt: str) -> tuple[str, tuple[int, int]]:
        """The conversation rendered just after its last answer, which follows `prompt`, and that answer's span."""
        begun = prompt[_common_prefix(self._apply(turns[:-1]), prompt) :]  # the beginning of the answer in the prompt
        _, marked, said = turns[-1].content.rpartition(THINK_END)
        if marked and THINK_END in begun:  # the prompt closes the thought: thinking is off
            turns, marked = [*turns[:-1], Turn("assistant", said.lstrip())], ""
        text = self._apply(turns)
        pieces = self._apply([*turns[:-1], Turn("assistant", _PLACEHOLDER)]).split(_PLACEHOLDER)
        if marked:
            return self._thoughtful_answer(text, pieces, turns, prompt, begun)
        if not text.startswith(prompt) and THINK_START in begun:
            raise UnusableRecord(
                Reason.TEMPLATE_MISMATCH,
                f"turn {len(turns) - 1} has no thought, but its prompt begins one; --chat-template-kwargs may turn "
                "thinking off",
            )
        ((start, end),) = self._match(text, pieces, [turns[-1].content])
        return text, (self._begin(text, prompt, start, len(turns) - 1), self._closing_end(text, end))

    def _thoughtful_answer(
        self, text: str, pieces: Sequence[str], turns: Sequence[Turn], prompt: str, begun: str
    ) -> tuple[str, tuple[int, int]]:
        """`_last_answer` with a thought; `text` is the conversation, `pieces` the text around the answer."""
        answer, after = turns[-1].content, pieces[-1]
        said, shown = _unsaid(answer, begun), text.removesuffix(after)
        if text.startswith(prompt) and text.endswith(after) and _same_words(shown[len(prompt) :], said):
            return text, (len(prompt), self._closing_end(text, len(shown)))
        role = prompt.removesuffix(begun) + begun.partition(THINK_START)[0]
        self._begin(text, role, len(shown), len(turns) - 1)
        if not shown[len(role) :].rstrip().endswith(answer.rpartition(THINK_END)[2].strip()):
            raise self._changed()
        # The template drops or moves the thought; the target saw the prompt and generated the whole answer.
        text = prompt + said + after[: self._closing_end(after, 0)]
        return text, (len(prompt), len(text))

    def _changed(self) -> UnusableRecord:
        return UnusableRecord(Reason.TEMPLATE_MISMATCH, f"{self.name}: it changes the text of answers")

    def _begin(self, text: str, prompt: str, start: int, number: int) -> int:
        """The start of the span of the answer at `start`."""
        if not text.startswith(prompt) or len(prompt) > start:
            raise UnusableRecord(
                Reason.TEMPLATE_MISMATCH,
                f"{self.name}: the prompt for turn {number} ends in {prompt[-30:]!r}, "
                f"and the conversation has {text[max(start - 30, 0) : start]!r} before that turn",
            )
        return len(prompt) if not text[len(prompt) : start].strip() else start

    def prompt(self, turns: Sequence[Turn]) -> str:
        """The prompt for the target's next answer.

        Raises:
            UnusableRecord: the template refuses the turns.
        """
        return self._apply(turns, add_generation_prompt=True)

    def user_turn(self) -> tuple[str, str]:
        """The text up to the first word of a user's first turn, and what follows the turn, without white space around.

        Raises:
            DataError: the template does not show a user's turn as it is.
        """
        before, found, after = self._apply([Turn("user", _PLACEHOLDER)]).partition(_PLACEHOLDER)
        if not found:
            raise DataError(f"{self.name} does not show a user's turn as it is")
        return before, after.strip()

    def _find_answers(self, text: str, turns: Sequence[Turn]) -> list[tuple[int, int]]:
        blank = [Turn(t.role, _PLACEHOLDER) if t.role == "assistant" else t for t in turns]
        pieces = self._apply(blank).split(_PLACEHOLDER)
        return self._match(text, pieces, [t.content for t in turns if t.role == "assistant"])

    def _match(self, text: str, pieces: Sequence[str], answers: Sequence[str]) -> list[tuple[int, int]]:
        """The positions of the answers in `text`, which has them between the pieces."""
        if len(pieces) == len(answers) + 1:
            for trim in _TRIMS:
                places, built = _interleave(pieces, [trim(answer) for answer in answers])
                if built == text:
                    return places
        raise self._changed()

    def _closing_end(self, text: str, end: int) -> int:
        match = self.closing.match(text, end) if self.closing else None
        return match.end() if match else end

    def _apply(self, turns: Sequence[Turn], *, add_generation_prompt: bool = False) -> str:
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    messages,
                    chat_template=self.template,
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                    **self.options,
                )
            )
        except Exception as error:
            # A template is a program: apart from deliberate refusals it may fail in any way on a conversation.
            raise UnusableRecord(Reason.REFUSED_BY_TEMPLATE, f"{self.name}: {sentence(error)}") from error


def _closing_pattern(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str] | None:
    """Matches EOS and the other special tokens with which a model may end a turn; not those that begin a text."""
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    special |= set(tokenizer.all_special_tokens)
    # The padding token stays: some tokenizers pad with the token that ends a turn, which must be learned.
    special -= {tokenizer.bos_token, tokenizer.unk_token}
    if tokenizer.eos_token:
        special.add(tokenizer.eos_token)
    choice = "|".join(re.escape(token) for token in sorted(special, key=len, reverse=True))
    return re.compile(rf"\s*(?:{choice})") if special else None


def _answer_numbers(turns: Sequence[Turn]) -> list[int]:
    return [number for number, turn in enumerate(turns) if turn.role == "assistant"]


def _interleave(pieces: Sequence[str], answers: Sequence[str]) -> tuple[list[tuple[int, int]], str]:
    """The positions of the answers in the text that has them between the pieces, and that text."""
    places, built = [], pieces[0]
    for answer, piece in zip(answers, pieces[1:], strict=True):
        places.append((len(built), len(built) + len(answer)))
        built += answer + piece
    return places, built


def _unsaid(answer: str, begun: str) -> str:
    """The rest of an answer with a thought, whose prompt contains its beginning `begun`."""
    before, opened, rest = answer.partition(THINK_START)
    return rest.lstrip("\n") if THINK_START in begun and opened and not before.strip() else answer


def _same_words(one: str, other: str) -> bool:
    """Whether two texts differ only in white space, which templates change around thoughts."""
    return "".join(one.split()) == "".join(other.split())


def _common_prefix(one: str, other: str) -> int:
    """The length of the common prefix of two texts."""
    same, limit = 0, min(len(one), len(other))
    while same < limit:
        # Binary search over slices: a template may render megabytes.
        end = (same + limit + 1) // 2
        if one.startswith(other[same:end], same):
            same = end
        else:
            limit = end - 1
    return same
