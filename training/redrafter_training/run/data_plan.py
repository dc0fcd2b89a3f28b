# SPDX-License-Identifier: Apache-2.0
"""What would be trained and measured on: read, compared and counted, not tokenised."""

from pathlib import Path

from transformers import AutoTokenizer

from redrafter_training.config.job import Job
from redrafter_training.config.recipe import DistillConfig
from redrafter_training.data.conversations import load_splits
from redrafter_training.data.python_corpus import corpus_root, is_source_code, load_corpus, split
from redrafter_training.data.splits import content_of, divide
from redrafter_training.responses.examples import load_responses
from redrafter_training.responses.store import is_response_folder


def describe_data(job: Job, config: DistillConfig) -> str:
    """How many texts there are, held out, equal to others. Those that the window cuts are counted whole.

    Raises:
        DataError: the data cannot be used.
    """
    keep = job.duplicates == "keep"
    if is_response_folder(job.data):
        tokenizer = AutoTokenizer.from_pretrained(job.target, trust_remote_code=job.trust_remote_code)
        longest = config.responses.longest_repeat
        texts = load_responses(Path(job.data), tokenizer, config.window, longest, keep_duplicates=keep)
        return str(texts.split)
    if is_source_code(job.data):
        sources = load_corpus(corpus_root(job.data))
        training, held_out = split(sources, keep_duplicates=keep)
        copies = len(sources) - len(training) - len(held_out)
        return f"{len(training):,} files to train on, {len(held_out):,} held out, {copies:,} copies left out"
    conversations, marked, report = load_splits(job.data, job.data_config, job.data_split, job.held_out_split)
    if len(conversations) == 1 and conversations[0].text is not None:
        return f"one document, held out by its pieces of {config.window} tokens"
    contents = [content_of(conversation) for conversation in conversations]
    divided = divide(contents, marked=marked, keep_duplicates=keep)
    skipped = f"\n{report.skipped:,} records cannot be used" if report.skipped else ""
    return f"{divided}{skipped}"
