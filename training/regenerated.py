# SPDX-License-Identifier: Apache-2.0
"""Regenerated texts as examples: exactly the tokens that the target was asked with and answered with."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from training.answer_store import AnswerStore, vocabulary_fingerprint
from training.answers import Answered
from training.conversation_feed import hold_out
from training.data_report import DataError
from training.examples import Example
from training.loops import loop_start

TOO_LONG = "prompt fills the window"
NO_ANSWER = "without an answer"


@dataclass(frozen=True)
class RegeneratedTexts:
    """The examples of a folder of answers."""

    training: list[Example]
    held_out: list[Example]
    facts: dict[str, object]


def load_regenerated(
    folder: Path, tokenizer: PreTrainedTokenizerBase, window: int, longest_repeat: int
) -> RegeneratedTexts:
    """All texts in `folder`, each cut where an answer repeats itself (see `loop_start`), and at `window` tokens.

    Raises:
        DataError: texts are missing, were written with another vocabulary, or none fits the window.
        StoreError: a file cannot be read.
    """
    store = AnswerStore(folder)
    manifest = store.manifest()
    if manifest["settings"]["vocabulary"] != vocabulary_fingerprint(tokenizer):
        raise DataError(
            f"{folder} was written by {manifest['settings']['target']} in other tokens than this target's: regenerate"
        )
    kept: dict[bool, list[Example]] = {False: [], True: []}
    left_out: Counter[str] = Counter()
    cut = looping = 0
    for text in store.read_all():
        text, looped = without_loop(text, longest_repeat)
        looping += looped
        if not text.answers:
            left_out[NO_ANSWER] += 1
        for example in examples_of(text):
            shortened = _cut(example, window)
            if shortened is None:
                left_out[TOO_LONG] += 1
                continue
            cut += shortened.cut > 0
            kept[text.held_out].append(shortened)
    training, held_out = kept[False], kept[True]
    if not training:
        raise DataError(f"{folder} has no text for --window {window} ({_told(left_out) or 'it is empty'})")
    if not held_out:
        training, held_out = hold_out(training)
    if cut or looping or left_out:
        print(
            f"{folder}: {cut} texts cut at {window} tokens, {looping} where they repeat themselves; "
            f"left out: {_told(left_out) or 'none'}"
        )
    return RegeneratedTexts(
        training,
        held_out,
        {
            "regenerated": manifest["settings"],
            "training": len(training),
            "held_out": len(held_out),
            "truncated": cut,
            "looping": looping,
            "skipped": left_out.total(),
        },
    )


def without_loop(text: Answered, longest_repeat: int) -> tuple[Answered, bool]:
    """The text up to the place where an answer begins to repeat itself, and whether there is one."""
    for number, answer in enumerate(text.answers):
        kept = loop_start(answer.answer_ids, 0, longest_repeat)
        if kept < len(answer.answer_ids):
            shortened = replace(answer, answer_ids=answer.answer_ids[:kept], ended=False)
            return replace(text, answers=(*text.answers[:number], shortened)), True
    return text, False


def examples_of(text: Answered) -> Iterator[Example]:
    """One example for as many answers as possible, its answers to be learned.

    An answer whose prompt does not begin with the tokens before it begins another example: a tokenizer may put a text
    into other tokens than those that the target emitted it in, and both are then kept as the target saw them.
    """
    ids: list[int] = []
    loss: list[bool] = []
    for answer in text.answers:
        if ids and list(answer.prompt_ids[: len(ids)]) != ids:
            yield _example(text.where, ids, loss)
            ids, loss = [], []
        loss = loss + [False] * (len(answer.prompt_ids) - len(ids)) + [True] * len(answer.answer_ids)
        ids = [*answer.prompt_ids, *answer.answer_ids]
    if ids:
        yield _example(text.where, ids, loss)


def _example(where: str, ids: Sequence[int], loss: Sequence[bool]) -> Example:
    return Example(where, torch.tensor(ids, dtype=torch.int32), torch.tensor(loss))


def _cut(example: Example, window: int) -> Example | None:
    """The first `window` tokens, or None when nothing is to be learned there."""
    if len(example) <= window:
        return example
    loss = example.loss[:window]
    return Example(example.where, example.tokens[:window], loss, len(example) - window) if loss.any() else None


def _told(left_out: Counter[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in left_out.items())
