# SPDX-License-Identifier: Apache-2.0
"""Prompts that the target invents: it continues its chat template from the opening of a user's turn.

A drafter needs the target's responses to many different prompts. A chat model was trained on users' turns, too, so it
can write them; no data set is needed.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from transformers import PreTrainedTokenizerBase

from redrafter_training.data.evaluation_prompts import is_evaluation_prompt
from redrafter_training.data.rendering import ChatTemplate
from redrafter_training.data.text_keys import text_key
from redrafter_training.responses.engine import Completion, Engine, Request
from redrafter_training.responses.generator import request_seed

BATCH = 512  # prompts sampled at once, and stored together
MIN_CHARACTERS = 12
MIN_YIELD = 0.05  # of a batch: below, the target has nothing new to say


class Rejected(StrEnum):
    """Why an invented prompt is left out."""

    CUT = "not ended within --max-prompt tokens"
    SHORT = f"shorter than {MIN_CHARACTERS} characters"
    BROKEN = "special tokens or broken characters inside"
    DUPLICATE = "says the same as an earlier one"
    EVALUATION = "says the same as a prompt of MT-Bench or Spec-Bench"


@dataclass(frozen=True)
class Prompt:
    """An invented prompt; `index` counts all that were sampled."""

    index: int
    text: str


@dataclass
class Invented:
    """The prompts kept until now, and what became of the others."""

    prompts: list[Prompt] = field(default_factory=list)
    sampled: int = 0
    rejected: Counter[Rejected] = field(default_factory=Counter)

    def __str__(self) -> str:
        lines = [f"{self.sampled:>9,}  prompts sampled", f"{len(self.prompts):>9,}  kept"]
        lines += [f"{count:>9,}  left out: {reason}" for reason, count in self.rejected.most_common()]
        if more := self.sampled - len(self.prompts) - self.rejected.total():
            lines.append(f"{more:>9,}  left out: more than --count in the last batch")
        return "\n".join(lines)


class Beginnings:
    """What the target continues: its template up to the beginning of a user's turn, and the first words of a prompt.

    `openings` are used in turn; an empty one leaves the first words to the target.
    """

    def __init__(
        self, template: ChatTemplate, tokenizer: PreTrainedTokenizerBase, openings: Sequence[str] = ("",)
    ) -> None:
        before, self.closing = template.user_turn()
        texts = [before + opening for opening in openings]
        encoded = tokenizer(texts, add_special_tokens=template.adds_special_tokens, verbose=False)["input_ids"]
        self._each = list(zip(openings, map(tuple, encoded), strict=True))

    @property
    def longest(self) -> int:
        """Tokens of the longest one."""
        return max(len(ids) for _, ids in self._each)

    def words(self, index: int) -> str:
        """The first words of prompt number `index`."""
        return self._each[index % len(self._each)][0]

    def ids(self, index: int) -> tuple[int, ...]:
        """Token ids up to the end of these words."""
        return self._each[index % len(self._each)][1]


class PromptInventor:
    """Samples prompts with `engine` until there are enough.

    Args:
        temperature: of the sampling; low ones repeat themselves.
        max_prompt: tokens that a prompt may have behind its first words.
        seed: prompt number i is the same for the same seed, however often the work is interrupted.
    """

    def __init__(
        self,
        beginnings: Beginnings,
        tokenizer: PreTrainedTokenizerBase,
        engine: Engine,
        *,
        temperature: float,
        max_prompt: int,
        seed: int,
    ) -> None:
        self._beginnings, self._tokenizer, self._engine = beginnings, tokenizer, engine
        self._temperature, self._max_prompt, self._seed = temperature, max_prompt, seed
        self._special = frozenset(tokenizer.all_special_ids)

    def __call__(self, found: Invented, count: int, stored: Callable[[Invented], None]) -> None:
        """Adds prompts to `found` until it holds `count`, and calls `stored` after every batch.

        Ends before where a batch brings hardly anything new.
        """
        keys = {text_key(prompt.text) for prompt in found.prompts}
        while len(found.prompts) < count:
            before = len(found.prompts)
            for index, completion in self._sample(found.sampled):
                found.sampled += 1
                text, reason = self._read(index, completion, keys)
                if reason is not None:
                    found.rejected[reason] += 1
                elif len(found.prompts) < count:
                    keys.add(text_key(text))
                    found.prompts.append(Prompt(index, text))
            stored(found)
            if len(found.prompts) - before < MIN_YIELD * BATCH and len(found.prompts) < count:
                return

    def _sample(self, first: int) -> Sequence[tuple[int, Completion]]:
        numbers = range(first, first + BATCH)
        requests = [
            Request(
                self._beginnings.ids(index), self._max_prompt, self._temperature, request_seed(self._seed, index, 0)
            )
            for index in numbers
        ]
        return list(zip(numbers, self._engine(requests), strict=True))

    def _read(self, index: int, completion: Completion, keys: set[int]) -> tuple[str, Rejected | None]:
        """The prompt that a completion of beginning number `index` makes, or why it is none."""
        ids, ended = completion.token_ids, completion.ended
        text = self._tokenizer.decode(
            ids[:-1] if ended else ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        # Templates without a token that ends a turn write something else behind it.
        closing = self._beginnings.closing
        if closing and closing in text:
            text, ended = text.partition(closing)[0], True
        text = (self._beginnings.words(index) + text).strip()
        if not ended:
            return text, Rejected.CUT
        if len(text) < MIN_CHARACTERS:
            return text, Rejected.SHORT
        if "\ufffd" in text or not all(c.isprintable() or c.isspace() for c in text) or self._is_special(ids[:-1]):
            return text, Rejected.BROKEN
        if text_key(text) in keys:
            return text, Rejected.DUPLICATE
        return text, Rejected.EVALUATION if is_evaluation_prompt(text) else None

    def _is_special(self, ids: Sequence[int]) -> bool:
        return any(token in self._special for token in ids)
