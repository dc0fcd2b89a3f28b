# SPDX-License-Identifier: Apache-2.0
"""What a training would read: the files of a folder, the texts, and how many of them are held out."""

from collections.abc import Iterable
from pathlib import Path

from transformers import AutoTokenizer

from redrafter_training.config.job import Job
from redrafter_training.config.recipe import DistillConfig
from redrafter_training.data.conversations import load_splits
from redrafter_training.data.python_corpus import corpus_root, is_source_code, load_corpus, source_files, split
from redrafter_training.data.records import DATA_SUFFIXES, data_set_files
from redrafter_training.data.splits import content_of, divide
from redrafter_training.responses.examples import load_responses
from redrafter_training.responses.store import is_response_folder

NAMED = 5  # ignored files that the note names


def describe_data(job: Job, config: DistillConfig) -> str:
    """The numbers of texts, held-out texts and duplicates, for the plan. Nothing is tokenised or cut at the window.

    Raises:
        DataError: the data cannot be used.
    """
    keep, keep_evaluation = job.duplicates == "keep", job.evaluation_prompts == "keep"
    if is_response_folder(job.data):
        tokenizer = AutoTokenizer.from_pretrained(job.target, trust_remote_code=job.trust_remote_code)
        longest = config.responses.longest_repeat
        texts = load_responses(
            Path(job.data),
            tokenizer,
            config.window,
            longest,
            further=config.responses.folders,
            keep_duplicates=keep,
            keep_evaluation=keep_evaluation,
        )
        return str(texts.split)
    if is_source_code(job.data):
        sources = load_corpus(corpus_root(job.data))
        training, held_out = split(sources, keep_duplicates=keep)
        copies = len(sources) - len(training) - len(held_out)
        return f"{len(training):,} files to train on, {len(held_out):,} held out, {copies:,} copies left out"
    conversations, marked, report = load_splits(
        job.data, job.data_config, job.data_split, job.held_out_split, keep_evaluation=keep_evaluation
    )
    if len(conversations) == 1 and conversations[0].text is not None:
        return f"one document, held out by its pieces of {config.window} tokens"
    contents = [content_of(conversation) for conversation in conversations]
    divided = divide(contents, marked=marked, keep_duplicates=keep)
    skipped = f"\n{report.skipped:,} records cannot be used" if report.skipped else ""
    return f"{divided}{skipped}"


def ignored_files(data: str, *, config: str | None = None, splits: Iterable[str | None] = (None,)) -> str | None:
    """A note on files of the folder `data` that could be data but are not read; None if there are none.

    Raises:
        DataError: the folder holds a data set that cannot be read.
    """
    folder = Path(data).expanduser()
    if not folder.is_dir() or is_response_folder(data):
        return None
    code = is_source_code(data)
    if code:
        used = set(source_files(corpus_root(data))[1])
    else:
        used = {path for split in splits for path in data_set_files(data, config, split)}
    left = [path for path in _candidates(folder) if path not in used]
    if not left:
        return None
    names = ", ".join(path.relative_to(folder).as_posix() for path in left[:NAMED])
    more = f" and {len(left) - NAMED} more" if len(left) > NAMED else ""
    kind = "Python source" if code else "data set"
    return f"{data} is read as a {kind}: {len(used)} files are read, {len(left)} are not ({names}{more})"


def _candidates(folder: Path) -> list[Path]:
    """Python sources and data files outside hidden folders."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() in (".py", *DATA_SUFFIXES) and path.is_file())
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))
