# SPDX-License-Identifier: Apache-2.0
"""The prompts of a regeneration: pieces of texts, and conversations to be held again."""

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import asdict
from itertools import accumulate

from transformers import PreTrainedTokenizerBase

from training.answers import Task
from training.chat_templates import resolve_chat_template
from training.conversation_feed import HELD_OUT_SHARE, hold_out
from training.conversations import Conversation, load_conversations
from training.corpus import SourceFile, corpus_root, is_source_code, load_corpus, split
from training.data_report import DataError, DataReport
from training.regeneration import Regeneration

SOURCE_TEXTS = 3072


def load_tasks(job: Regeneration, tokenizer: PreTrainedTokenizerBase) -> tuple[list[Task], DataReport]:
    """All texts to be written, those for training first, and what became of the data's records.

    Raises:
        DataError: the data cannot be read or holds nothing to answer, or there is no chat template where one is needed.
    """
    if not is_source_code(job.data):
        return _record_tasks(job, tokenizer)
    if job.data_config or job.data_split or job.held_out_split:
        raise DataError(f"{job.data} has no splits: leave --data-config, --data-split and --held-out-split away")
    return _source_tasks(job, tokenizer)


def fingerprint(tasks: Sequence[Task]) -> str:
    """Of all prompts, in order."""
    digest = hashlib.sha256()
    for task in tasks:
        digest.update(json.dumps(asdict(task), sort_keys=True).encode())
    return digest.hexdigest()[:16]


def _source_tasks(job: Regeneration, tokenizer: PreTrainedTokenizerBase) -> tuple[list[Task], DataReport]:
    try:
        training, held_out = split(load_corpus(corpus_root(job.data)))
    except FileNotFoundError as problem:
        raise DataError(str(problem)) from problem
    count = job.count or SOURCE_TEXTS
    rng = random.Random(job.seed)
    pieces = _pieces(training, count, job, tokenizer, rng)
    # A few files may all be on one side of the split; then the feed holds out some of the training's texts.
    aside = _pieces(held_out, _held_out_count(count), job, tokenizer, rng) if held_out else []
    texts = [(where, ids, False) for where, ids in pieces] + [(where, ids, True) for where, ids in aside]
    tasks = [Task(index, where, held, prompt_ids=ids) for index, (where, ids, held) in enumerate(texts)]
    return tasks, DataReport(used=len(tasks))


def _pieces(
    files: Sequence[SourceFile],
    count: int,
    job: Regeneration,
    tokenizer: PreTrainedTokenizerBase,
    rng: random.Random,
) -> list[tuple[str, tuple[int, ...]]]:
    """Stretches of the files, with BOS where the tokenizer has one; every token of the files is as likely a start."""
    encoded = tokenizer([file.text for file in files], add_special_tokens=False, verbose=False)["input_ids"]
    usable = [(file.path, ids) for file, ids in zip(files, encoded, strict=True) if len(ids) >= job.min_prompt]
    if not usable:
        raise DataError(f"no file of {job.data} has the {job.min_prompt} tokens of a prompt (--min-prompt)")
    weights = list(accumulate(len(ids) for _, ids in usable))
    front = () if tokenizer.bos_token_id is None else (tokenizer.bos_token_id,)
    found = []
    for _ in range(count):
        path, ids = rng.choices(usable, cum_weights=weights)[0]
        size = rng.randint(job.min_prompt, min(job.max_prompt, len(ids)))
        start = rng.randint(0, len(ids) - size)
        found.append((f"{path} token {start}", (*front, *ids[start : start + size])))
    return found


def _record_tasks(job: Regeneration, tokenizer: PreTrainedTokenizerBase) -> tuple[list[Task], DataReport]:
    conversations, report = load_conversations(
        [job.data], config=job.data_config, split=job.data_split, need_answers=False
    )
    if any(conversation.turns for conversation in conversations):
        resolve_chat_template(tokenizer, job.chat_template, job.chat_template_kwargs)
    rng = random.Random(job.seed)
    if job.held_out_split is None:
        training, held_out = hold_out(conversations)
    else:
        held_out, further = load_conversations(
            [job.data], config=job.data_config, split=job.held_out_split, need_answers=False
        )
        seen = {_asked_first(conversation) for conversation in held_out}
        training = [conversation for conversation in conversations if _asked_first(conversation) not in seen]
        report.used -= len(conversations) - len(training)
        report.merge(further)
    if job.count is not None:
        training = _choose(training, job.count, rng)
        held_out = _choose(held_out, _held_out_count(job.count), rng)
    chosen = [(c, False) for c in training] + [(c, True) for c in held_out]
    return [_record_task(n, c, held, job, tokenizer, rng) for n, (c, held) in enumerate(chosen)], report


def _asked_first(conversation: Conversation) -> str | None:
    return next((turn.content for turn in conversation.turns if turn.role == "user"), conversation.text)


def _choose(conversations: list[Conversation], count: int, rng: random.Random) -> list[Conversation]:
    """At most `count` of them, in the data's order."""
    chosen = rng.sample(range(len(conversations)), min(count, len(conversations)))
    return [conversations[number] for number in sorted(chosen)]


def _record_task(
    index: int,
    conversation: Conversation,
    held_out: bool,
    job: Regeneration,
    tokenizer: PreTrainedTokenizerBase,
    rng: random.Random,
) -> Task:
    """A conversation as it is, or the beginning of a plain text."""
    if conversation.text is None:
        return Task(index, conversation.where, held_out, turns=conversation.turns)
    size = rng.randint(job.min_prompt, job.max_prompt)
    ids = tokenizer(conversation.text, truncation=True, max_length=size + 1, verbose=False)["input_ids"]
    # The last token may be an EOS that the tokenizer adds, after which there is nothing to say.
    return Task(index, conversation.where, held_out, prompt_ids=tuple(ids[:-1] if len(ids) > 1 else ids))


def _held_out_count(count: int) -> int:
    return max(1, count // HELD_OUT_SHARE)
