# SPDX-License-Identifier: Apache-2.0
"""Conversations rendered by a chat template, with the stretches of text that the assistant says.

The stretches are found by rendering, not by markers in the template, so that any template will do: the same
conversation with placeholders for answers shows where the answers stand, and the prompt of each answer, rendered as
serving renders it, must be how the conversation begins.

Templates of models that think before they answer show an answer otherwise once it lies behind: they drop its thought.
No single text then holds what the target has seen at every answer, and each answer gets a text of its own, with the
conversation before it as its prompt shows it.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from redrafter_training.data.conversations import Conversation, Turn
from redrafter_training.data.record_forms import THINK, THOUGHT
from redrafter_training.data.report import DataError, Reason, UnusableRecord
from redrafter_vllm.utils.messages import sentence

# Characters of a private-use area: no trim filter removes them and no sensible text holds them.
_PLACEHOLDER = "\uf1d0answer\uf1d1"
_TRIMS: tuple[Callable[[str], str], ...] = (str, str.strip, str.rstrip, str.lstrip)


def _probe(*answers: str) -> Conversation:
    first, second = (Turn("assistant", answer) for answer in answers)
    return Conversation("probe", (Turn("user", "Is it?"), first, Turn("user", "And then?"), second))


PROBES = (
    _probe("It is.", "Then it was."),
    # For templates whose prompts begin a thought: an answer without one is none there.
    _probe("<think>\nHm.\n</think>\n\nIt is.", "<think>\nThen?\n</think>\n\nThen it was."),
)


@dataclass(frozen=True)
class Rendered:
    """A conversation as text, and where the assistant speaks: [start, end) in characters, ascending.

    The first `earlier` answers of the conversation have no span: they are part of the prompt, as it shows them. The
    prompt for the answer of the first span has `asked` characters; the template may put something between the two.
    """

    text: str
    spans: tuple[tuple[int, int], ...]
    earlier: int = 0
    asked: int = 0


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template bound to a tokenizer.

    `template` is Jinja source, or None for the tokenizer's own. `adds_special_tokens` says that the tokenizer, not the
    template, puts BOS in front. `options` are variables for the template, for instance `enable_thinking`.
    """

    tokenizer: PreTrainedTokenizerBase
    name: str
    template: str | None = None
    adds_special_tokens: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    closing: re.Pattern[str] | None = field(init=False)  # what may close an answer

    def __post_init__(self) -> None:
        object.__setattr__(self, "closing", _closing_pattern(self.tokenizer))
        problems = [self._probe_problem(probe) for probe in PROBES]
        if all(problems):
            raise DataError(
                f"{self.name} cannot be trained with: {problems[0]}. Another one, or other variables for it, may do "
                "(--chat-template, --chat-template-kwargs)"
            )

    def _probe_problem(self, probe: Conversation) -> str | None:
        try:
            shown = sum(len(rendered.spans) for rendered in self.render(probe))
        except UnusableRecord as problem:
            return problem.detail or str(problem)
        return None if shown == len(probe.answers) else f"it shows {shown} of {len(probe.answers)} answers"

    def render(self, conversation: Conversation) -> list[Rendered]:
        """The conversation up to its last answer: one text, or several where the template shows earlier answers
        otherwise than they were given. Every answer stands in one of them.

        A span begins where the prompt for the answer ends, with the space before the answer if there is one, and goes
        to the end of the special token that closes the answer (EOS or end of turn), if one does. A thought is part of
        its answer. What the template itself puts in front of an answer and the prompt for it does not have, an empty
        thought for instance, is not the assistant's; nor is what the prompt has already said of the answer.

        Raises:
            UnusableRecord: the template refuses the conversation, changes an answer, or renders the prompt of an
                answer differently from the conversation.
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
        """Each answer after its own prompt; in the text of the answer before it where that is how the prompt begins."""
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
        """The conversation as it is when its last answer has just been given to `prompt`, and that answer's span."""
        begun = prompt[_shared(self._apply(turns[:-1]), prompt) :]  # what the prompt says of the answer already
        _, marked, said = turns[-1].content.rpartition(THOUGHT)
        if marked and THOUGHT in begun:  # the prompt closes the thought: the target is not to think
            turns, marked = [*turns[:-1], Turn("assistant", said.lstrip())], ""
        text = self._apply(turns)
        pieces = self._apply([*turns[:-1], Turn("assistant", _PLACEHOLDER)]).split(_PLACEHOLDER)
        if marked:
            return self._thoughtful_answer(text, pieces, turns, prompt, begun)
        if not text.startswith(prompt) and THINK in begun:
            raise UnusableRecord(
                Reason.TEMPLATE_MISMATCH,
                f"turn {len(turns) - 1} has no thought, which the prompt for it begins; --chat-template-kwargs may "
                "turn thinking off",
            )
        ((start, end),) = self._match(text, pieces, [turns[-1].content])
        return text, (self._begin(text, prompt, start, len(turns) - 1), self._closing_end(text, end))

    def _thoughtful_answer(
        self, text: str, pieces: Sequence[str], turns: Sequence[Turn], prompt: str, begun: str
    ) -> tuple[str, tuple[int, int]]:
        """`_last_answer` of one with a thought; `text` is the conversation, `pieces` what stands around its answer."""
        answer, after = turns[-1].content, pieces[-1]
        said, shown = _left_to_say(answer, begun), text.removesuffix(after)
        if text.startswith(prompt) and text.endswith(after) and _same_words(shown[len(prompt) :], said):
            return text, (len(prompt), self._closing_end(text, len(shown)))
        role = prompt.removesuffix(begun) + begun.partition(THINK)[0]
        self._begin(text, role, len(shown), len(turns) - 1)
        if not shown[len(role) :].rstrip().endswith(answer.rpartition(THOUGHT)[2].strip()):
            raise self._changed()
        # The template drops the thought or moves it about; the target was shown the prompt and said the answer.
        text = prompt + said + after[: self._closing_end(after, 0)]
        return text, (len(prompt), len(text))

    def _changed(self) -> UnusableRecord:
        return UnusableRecord(Reason.TEMPLATE_MISMATCH, f"{self.name}: it does not render answers as they are")

    def _begin(self, text: str, prompt: str, start: int, number: int) -> int:
        """Where the answer at `start` begins to be the assistant's."""
        if not text.startswith(prompt) or len(prompt) > start:
            raise UnusableRecord(
                Reason.TEMPLATE_MISMATCH,
                f"{self.name}: the prompt for turn {number} ends in {prompt[-30:]!r}, "
                f"and the conversation has {text[max(start - 30, 0) : start]!r} before that turn",
            )
        return len(prompt) if not text[len(prompt) : start].strip() else start

    def prompt(self, turns: Sequence[Turn]) -> str:
        """The text after which the target is to answer.

        Raises:
            UnusableRecord: the template refuses the turns.
        """
        return self._apply(turns, add_generation_prompt=True)

    def _find_answers(self, text: str, turns: Sequence[Turn]) -> list[tuple[int, int]]:
        blank = [Turn(t.role, _PLACEHOLDER) if t.role == "assistant" else t for t in turns]
        pieces = self._apply(blank).split(_PLACEHOLDER)
        return self._match(text, pieces, [t.content for t in turns if t.role == "assistant"])

    def _match(self, text: str, pieces: Sequence[str], answers: Sequence[str]) -> list[tuple[int, int]]:
        """Where the answers stand in `text`, which has them between the pieces."""
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
            # A template is a program: besides refusing on purpose it may fail in any way on an unforeseen conversation.
            raise UnusableRecord(Reason.REFUSED_BY_TEMPLATE, f"{self.name}: {sentence(error)}") from error


def _closing_pattern(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str] | None:
    """EOS and the other special tokens that a model may end a turn with: not those that begin a text."""
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    special |= set(tokenizer.all_special_tokens)
    # Not without the padding token: some tokenizers pad with the token that ends a turn, and its end is to be learned.
    special -= {tokenizer.bos_token, tokenizer.unk_token}
    if tokenizer.eos_token:
        special.add(tokenizer.eos_token)
    choice = "|".join(re.escape(token) for token in sorted(special, key=len, reverse=True))
    return re.compile(rf"\s*(?:{choice})") if special else None


def _answer_numbers(turns: Sequence[Turn]) -> list[int]:
    return [number for number, turn in enumerate(turns) if turn.role == "assistant"]


def _interleave(pieces: Sequence[str], answers: Sequence[str]) -> tuple[list[tuple[int, int]], str]:
    """Where the answers stand in the text that has them between the pieces, and that text."""
    places, built = [], pieces[0]
    for answer, piece in zip(answers, pieces[1:], strict=True):
        places.append((len(built), len(built) + len(answer)))
        built += answer + piece
    return places, built


def _left_to_say(answer: str, begun: str) -> str:
    """What is left of an answer with a thought when the prompt for it has begun it with `begun`."""
    before, opened, rest = answer.partition(THINK)
    return rest.lstrip("\n") if THINK in begun and opened and not before.strip() else answer


def _same_words(one: str, other: str) -> bool:
    """Whether two texts differ in white space alone, which templates set anew around thoughts."""
    return "".join(one.split()) == "".join(other.split())


def _shared(one: str, other: str) -> int:
    """Characters that two texts have in common at their beginnings."""
    same, most = 0, min(len(one), len(other))
    while same < most:
        # Halves are compared as a whole: a template may render megabytes.
        end = (same + most + 1) // 2
        if one.startswith(other[same:end], same):
            same = end
        else:
            most = end - 1
    return same
