# SPDX-License-Identifier: Apache-2.0
"""How many steps a pass over the data takes, before a training."""

from pathlib import Path

from transformers import AutoTokenizer

from redrafter_training.config.job import Job
from redrafter_training.config.recipe import DistillConfig
from redrafter_training.data.batches import pass_steps
from redrafter_training.data.python_corpus import corpus_root, is_source_code, load_corpus, split
from redrafter_training.data.windows import text_steps
from redrafter_training.responses.examples import load_responses
from redrafter_training.responses.store import is_response_folder
from redrafter_training.run.feed import divided_conversations, encode_sources
from redrafter_training.run.feed_settings import FeedSettings


def check_epochs(job: Job, config: DistillConfig) -> None:
    """Raises ValueError where epochs are wanted of data that no row of a step is from."""
    if config.budget.epochs is not None and not config.data_rows and not is_response_folder(job.data):
        raise ValueError(
            "epochs are passes over the data, but all rows are the target's own text: lower response_fraction, or "
            "give max_steps instead"
        )


def planned(job: Job, config: DistillConfig) -> tuple[DistillConfig, str | None]:
    """The configuration with a number of steps; and how it follows from the epochs, if they were given."""
    if config.budget.epochs is None:
        return config, None
    steps = steps_per_epoch(job, config)
    return config.with_steps(steps), f"{config.budget.epochs:g} epochs of {steps:,.1f} steps"


def steps_per_epoch(job: Job, config: DistillConfig) -> float:
    """Steps of a pass over a job's data, which is read and tokenised here.

    The target is not loaded: it is taken to keep packed conversations apart.

    Raises:
        DataError: the data cannot be used.
    """
    settings = FeedSettings.of(job, config)
    tokenizer = AutoTokenizer.from_pretrained(job.target, trust_remote_code=job.trust_remote_code)
    window = config.window if config.packing else None
    if is_response_folder(job.data):
        texts = load_responses(
            Path(job.data),
            tokenizer,
            config.window,
            config.responses.longest_repeat,
            further=config.responses.folders,
            keep_duplicates=settings.keep_duplicates,
            keep_evaluation=settings.keep_evaluation,
        )
        return pass_steps(texts.training, config.batch_size, config.seed, window)
    if is_source_code(job.data):
        training, _ = split(load_corpus(corpus_root(job.data)), keep_duplicates=settings.keep_duplicates)
        files = encode_sources(settings, training, tokenizer)
        return text_steps(files, config.window, tokenizer.bos_token_id, config.data_rows)
    divided, _ = divided_conversations(settings, tokenizer, quiet=True)
    return pass_steps(divided.training, config.data_rows, config.seed, window)
