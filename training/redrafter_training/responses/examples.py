# SPDX-License-Identifier: Apache-2.0
"""Regenerated texts as examples: exactly the tokens that the target was asked with and answered with."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from redrafter_training.config.recipe import ResponseConfig
from redrafter_training.data.division import divide_examples
from redrafter_training.data.report import DataError
from redrafter_training.data.splits import Content, Split, text_key
from redrafter_training.data.tokenize import Example
from redrafter_training.responses.records import TaskResult
from redrafter_training.responses.repetition import repetition_start
from redrafter_training.responses.store import ResponseStore, is_response_folder, vocabulary_fingerprint
from redrafter_training.utils.fingerprint import differences

TOO_LONG = "prompt fills the window"
NO_ANSWER = "without an answer"


@dataclass(frozen=True)
class ResponseExamples:
    """The examples of a folder of answers."""

    training: list[Example]
    held_out: list[Example]
    prompts: list[Example]  # one for each held-out prompt
    split: Split
    facts: dict[str, object]


def load_responses(
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    window: int,
    longest_repeat: int,
    *,
    target: Mapping[str, str] | None = None,
    any_target: bool = False,
    keep_duplicates: bool = False,
) -> ResponseExamples:
    """All texts in `folder`, each cut where an answer repeats itself (see `repetition_start`), and at `window` tokens.

    Args:
        target: fingerprint of the target that they are to be the own texts of, if they are to be one's.
        any_target: take those of another target of the same vocabulary, too.
        keep_duplicates: keep all of several equal texts.

    Raises:
        DataError: texts are missing, were written by another target, or none fits the window.
        StoreError: a file cannot be read.
    """
    store = ResponseStore(folder)
    manifest = store.manifest()
    if manifest["settings"]["vocabulary"] != vocabulary_fingerprint(tokenizer):
        raise DataError(
            f"{folder} was written by {manifest['settings']['target']} in other tokens than this target's: regenerate"
        )
    if target and not any_target:
        check_writer(folder, manifest["settings"], target)
    examples: list[Example] = []
    marked: list[int] = []
    left_out: Counter[str] = Counter()
    cut = looping = 0
    for text in store.read_all():
        text, looped = cut_repetition(text, longest_repeat)
        looping += looped
        if not text.answers:
            left_out[NO_ANSWER] += 1
        for example in examples_of(text):
            shortened = _cut(example, window)
            if shortened is None:
                left_out[TOO_LONG] += 1
                continue
            cut += shortened.cut > 0
            marked += [len(examples)] * text.held_out
            examples.append(shortened)
    if len(marked) == len(examples):
        raise DataError(f"{folder} has no text for --window {window} ({_told(left_out) or 'it is empty'})")
    divided = divide_examples(examples, marked=marked, keep_duplicates=keep_duplicates)
    if cut or looping or left_out:
        print(
            f"{folder}: {cut} texts cut at {window} tokens, {looping} where they repeat themselves; "
            f"left out: {_told(left_out) or 'none'}"
        )
    facts: dict[str, object] = {"regenerated": manifest["settings"], **divided.split.facts()}
    facts |= {"truncated": cut, "looping": looping, "skipped": left_out.total()}
    return ResponseExamples(divided.training, divided.held_out, divided.prompts, divided.split, facts)


def folder_responses(
    config: ResponseConfig, tokenizer: PreTrainedTokenizerBase, window: int, target: Mapping[str, str] | None = None
) -> list[Example]:
    """The training examples of all folders of responses in `config`, each of at most `window` tokens.

    Raises:
        DataError: a folder was not written by `redrafter_training.respond`; or see `load_responses`.
    """
    texts: list[Example] = []
    for folder in config.folders:
        if not is_response_folder(folder):
            raise DataError(
                f"{folder}: not a folder of responses; python -m redrafter_training.respond --out {folder} makes one"
            )
        loaded = load_responses(
            Path(folder), tokenizer, window, config.longest_repeat, target=target, any_target=config.any_target
        )
        texts += loaded.training
    return texts


def check_writer(folder: Path, settings: Mapping[str, Any], target: Mapping[str, str]) -> None:
    """
    Raises:
        DataError: the texts are another target's.
    """
    wrote = settings.get("target_content")
    if wrote is None:
        print(f"{folder} was written before targets were told apart by content: its texts are taken for this target's")
    elif changed := differences(wrote, target):
        raise DataError(
            f"{folder} was written by another target, {settings['target']} ({', '.join(changed)}): regenerate, or take "
            "its texts nevertheless with --responses.any-target"
        )


def cut_repetition(text: TaskResult, longest_repeat: int) -> tuple[TaskResult, bool]:
    """The text up to the place where an answer begins to repeat itself, and whether there is one."""
    for number, answer in enumerate(text.answers):
        kept = repetition_start(answer.answer_ids, 0, longest_repeat)
        if kept < len(answer.answer_ids):
            shortened = replace(answer, answer_ids=answer.answer_ids[:kept], ended=False)
            return replace(text, answers=(*text.answers[:number], shortened)), True
    return text, False


def examples_of(text: TaskResult) -> Iterator[Example]:
    """One example for as many answers as possible, its answers to be learned.

    An answer whose prompt does not begin with the tokens before it begins another example: a tokenizer may put a text
    into other tokens than those that the target emitted it in, and both are then kept as the target saw them.
    """
    ids: list[int] = []
    loss: list[bool] = []
    said: list[int] = []
    exchanges: list[tuple[int, ...]] = []
    ends: list[int] = []
    # Folders of earlier versions do not tell what the prompts say, beyond their tokens.
    keys = text.prompts or [text_key(str(answer.prompt_ids)) for answer in text.answers]
    for key, answer in zip(keys, text.answers, strict=False):
        said += [key, text_key(answer.text)]
        if ids and list(answer.prompt_ids[: len(ids)]) != ids:
            yield _example(text.where, ids, loss, Content(said[0], tuple(exchanges)), ends)
            # All that was said before is the next one's prompt.
            ids, loss, ends, exchanges = [], [], [], [tuple(said)]
        else:
            exchanges.append((said[-2], said[-1]))
        loss = loss + [False] * (len(answer.prompt_ids) - len(ids)) + [True] * len(answer.answer_ids)
        ids = [*answer.prompt_ids, *answer.answer_ids]
        ends.append(len(ids))
    if ids:
        yield _example(text.where, ids, loss, Content(said[0], tuple(exchanges)), ends)


def _example(where: str, ids: Sequence[int], loss: Sequence[bool], content: Content, ends: Sequence[int]) -> Example:
    return Example(where, torch.tensor(ids, dtype=torch.int32), torch.tensor(loss), content=content, ends=tuple(ends))


def _cut(example: Example, window: int) -> Example | None:
    """The first `window` tokens, or None when nothing is to be learned there."""
    if len(example) <= window:
        return example
    loss = example.loss[:window]
    if not loss.any() or example.content is None:
        return None
    kept = next(number for number, end in enumerate(example.ends, 1) if end >= window)
    content = Content(example.content.group, example.content.exchanges[:kept])
    ends = (*example.ends[: kept - 1], window)
    return Example(example.where, example.tokens[:window], loss, len(example) - window, content, ends)


def _told(left_out: Counter[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in left_out.items())
