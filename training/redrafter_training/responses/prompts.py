# SPDX-License-Identifier: Apache-2.0
"""The tasks of response generation: stretches of texts to continue, and conversations."""

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, replace

from transformers import PreTrainedTokenizerBase

from redrafter_training.data.chat_templates import resolve_chat_template
from redrafter_training.data.conversations import Conversation, load_splits
from redrafter_training.data.python_corpus import SourceFile, corpus_root, is_source_code, load_corpus, split
from redrafter_training.data.report import DataError, DataReport, Reason, UnusableRecord
from redrafter_training.data.splits import HELD_OUT_SHARE, content_of, divide
from redrafter_training.data.text_prompts import Passages, cut_stretches
from redrafter_training.responses.config import ResponseJob
from redrafter_training.responses.records import Task

SOURCE_TEXTS = 3072


def load_tasks(job: ResponseJob, tokenizer: PreTrainedTokenizerBase) -> tuple[list[Task], DataReport]:
    """All texts to generate, those for training first, and what became of the data's records.

    Raises:
        DataError: the data cannot be read or holds no prompt, or a chat template is missing.
    """
    if not is_source_code(job.data):
        return _record_tasks(job, tokenizer)
    if job.data_config or job.data_split or job.held_out_split:
        raise DataError(f"{job.data} has no splits: leave --data-config, --data-split and --held-out-split out")
    return _source_tasks(job, tokenizer)


def fingerprint(tasks: Sequence[Task]) -> str:
    """A fingerprint of all tasks, in order."""
    digest = hashlib.sha256()
    for task in tasks:
        digest.update(json.dumps(asdict(task), sort_keys=True).encode())
    return digest.hexdigest()[:16]


def _source_tasks(job: ResponseJob, tokenizer: PreTrainedTokenizerBase) -> tuple[list[Task], DataReport]:
    try:
        training, held_out = split(load_corpus(corpus_root(job.data)), keep_duplicates=job.duplicates == "keep")
    except FileNotFoundError as problem:
        raise DataError(str(problem)) from problem
    count = job.count or SOURCE_TEXTS
    rng = random.Random(job.seed)
    encoded = [
        tokenizer([file.text for file in files], add_special_tokens=False, verbose=False)["input_ids"] if files else []
        for files in (training, held_out)
    ]
    stretches = _stretches(training, encoded[0], encoded[1], count, job, tokenizer, rng)
    texts = [(where, ids, False) for where, ids in stretches]
    if not texts:
        raise DataError(f"no file of {job.data} has the {job.min_prompt} tokens of a prompt (--min-prompt)")
    # A single file is on one side of the split as a whole; then the feed holds out some of the texts.
    aside = _stretches(held_out, encoded[1], encoded[0], _held_out_count(count), job, tokenizer, rng)
    texts += [(where, ids, True) for where, ids in aside]
    tasks = [Task(index, where, held, prompt_ids=ids) for index, (where, ids, held) in enumerate(texts)]
    return tasks, DataReport(used=len(tasks))


def _stretches(
    files: Sequence[SourceFile],
    encoded: Sequence[list[int]],
    other_side: Sequence[list[int]],
    count: int,
    job: ResponseJob,
    tokenizer: PreTrainedTokenizerBase,
    rng: random.Random,
) -> list[tuple[str, tuple[int, ...]]]:
    """Different stretches of the files that `other_side` does not contain, after BOS where the tokenizer has one."""
    usable = [ids if len(ids) >= job.min_prompt else [] for ids in encoded]
    front = () if tokenizer.bos_token_id is None else (tokenizer.bos_token_id,)
    lengths = (job.min_prompt, job.max_prompt)
    found = cut_stretches(usable, count, lengths, front, rng, elsewhere=Passages(other_side))
    return [(f"{files[stretch.text].path} token {stretch.start}", stretch.ids) for stretch in found]


def _record_tasks(job: ResponseJob, tokenizer: PreTrainedTokenizerBase) -> tuple[list[Task], DataReport]:
    conversations, marked, report = load_splits(
        job.data,
        job.data_config,
        job.data_split,
        job.held_out_split,
        need_answers=False,
        keep_evaluation=job.evaluation_prompts == "keep",
    )
    if any(conversation.turns for conversation in conversations):
        resolve_chat_template(tokenizer, job.chat_template, job.chat_template_kwargs)
    rng = random.Random(job.seed)
    contents = [content_of(conversation, answered=False) for conversation in conversations]
    divided = divide(contents, marked=marked, keep_duplicates=job.duplicates == "keep")
    print(divided)
    training, held_out = (
        [_up_to(conversations[text.index], text.exchanges) for text in kept]
        for kept in (divided.training, divided.held_out)
    )
    seen, unseen = (_Excluded(tokenizer, side) for side in (training, held_out))
    if job.count is not None:
        training = _choose(training, job.count, rng)
        held_out = _choose(held_out, _held_out_count(job.count), rng)
    tasks: list[Task] = []
    for conversation, held in [(c, False) for c in training] + [(c, True) for c in held_out]:
        elsewhere = seen if held else unseen
        if (task := _record_task(len(tasks), conversation, held, job, tokenizer, rng, elsewhere)) is not None:
            tasks.append(task)
        else:
            report.reject(conversation.where, UnusableRecord(Reason.NO_PROMPT))
    if not any(not task.held_out for task in tasks):
        raise DataError(f"no text of {job.data} has a prompt that is not held out")
    return tasks, report


class _Excluded:
    """Stretches that are no prompts: those in one of some plain texts, and those that are prompts already."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, texts: Sequence[Conversation]) -> None:
        self._tokenizer = tokenizer
        self._texts = "\0".join(conversation.text for conversation in texts if conversation.text is not None)
        self._prompts: set[tuple[int, ...]] = set()

    def add(self, ids: tuple[int, ...]) -> None:
        self._prompts.add(ids)

    def __contains__(self, ids: object) -> bool:
        assert isinstance(ids, tuple)
        text = self._tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        return ids in self._prompts or text in self._texts


def _choose(conversations: list[Conversation], count: int, rng: random.Random) -> list[Conversation]:
    """At most `count` of them, in the data's order."""
    chosen = rng.sample(range(len(conversations)), min(count, len(conversations)))
    return [conversations[number] for number in sorted(chosen)]


def _up_to(conversation: Conversation, prompts: int) -> Conversation:
    """The conversation up to the user's turn after the first `prompts` ones."""
    ends = [place for place, turn in enumerate(conversation.turns, 1) if turn.role == "user"]
    if len(ends) <= prompts:
        return conversation
    return replace(conversation, turns=conversation.turns[: ends[prompts] - 1])


def _record_task(
    index: int,
    conversation: Conversation,
    held_out: bool,
    job: ResponseJob,
    tokenizer: PreTrainedTokenizerBase,
    rng: random.Random,
    elsewhere: _Excluded,
) -> Task | None:
    """A conversation as it is, or a stretch of a plain text that is not in `elsewhere`; None where there is none."""
    if conversation.text is None:
        return Task(index, conversation.where, held_out, turns=conversation.turns)
    ids = tokenizer(conversation.text, add_special_tokens=False, verbose=False)["input_ids"]
    begins = tokenizer("a")["input_ids"][:1]
    front = tuple(begins) if begins == [tokenizer.bos_token_id] else ()
    for stretch in cut_stretches([ids], 1, (job.min_prompt, job.max_prompt), front, rng, elsewhere=elsewhere):
        elsewhere.add(stretch.ids[len(front) :])
        return Task(index, f"{conversation.where} token {stretch.start}", held_out, prompt_ids=stretch.ids)
    return None


def _held_out_count(count: int) -> int:
    return max(1, count // HELD_OUT_SHARE)
