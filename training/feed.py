# SPDX-License-Identifier: Apache-2.0
"""The batches of a training, what is held out of them, and where they come from."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from training.config import DistillConfig
from training.context import TrainContext
from training.corpus import extract_prompts, load_corpus, split
from training.data import Windows, encode_files, mixed_batches, text_batches
from training.draft_vocabulary import token_frequencies
from training.evaluate import held_out_windows
from training.frozen_target import FrozenTarget
from training.generate import make_responses

STDLIB = "stdlib"


@dataclass(frozen=True)
class Feed:
    """Data of one training."""

    batches: Iterator[Windows]  # of the whole job, endless, the same in every process and run
    held_out: Windows
    prompts: list[Tensor]  # held out too; the target continues them when tokens per step are measured
    frequencies: Callable[[int], Tensor]  # of the tokens 0..V-1 in training, [V], for a vocabulary size V
    facts: dict[str, object]  # for the record: where from, how much


@dataclass(frozen=True)
class FeedSettings:
    """What a feed is made from."""

    data: str
    config: DistillConfig
    folder: Path  # for what is made once per run
    held_out_windows: int


def is_source_code(data: str) -> bool:
    """Whether `data` names Python sources: the standard library, or a folder with some."""
    folder = Path(data)
    return data == STDLIB or (folder.is_dir() and next(folder.rglob("*.py"), None) is not None)


def source_code_feed(
    settings: FeedSettings, target: FrozenTarget, tokenizer: PreTrainedTokenizerBase, context: TrainContext
) -> Feed:
    """Windows of Python sources, some of them continued by the target itself."""
    config, bos = settings.config, tokenizer.bos_token_id
    root = None if settings.data == STDLIB else Path(settings.data)
    training, held_out = split(load_corpus(root))
    files = encode_files(training, tokenizer)
    responses = None
    if config.response_fraction:
        responses = _responses_once(settings, target, files, bos, context)
    rows = config.batch_size - round(config.batch_size * config.response_fraction)
    text = text_batches(files, config.window, bos, max(rows, 1), config.seed)
    prompts = extract_prompts(held_out, 32, seed=1, max_chars=600)
    return Feed(
        mixed_batches(text, responses, config.batch_size, config.response_fraction, config.seed),
        held_out_windows(tokenizer, settings.held_out_windows, length=config.window, corpus=root),
        [torch.tensor(tokenizer(prompt)["input_ids"]) for prompt in prompts],
        partial(token_frequencies, files, responses, config.response_fraction),
        {"data": settings.data, "files": len(files), "tokens": sum(map(len, files))},
    )


def _responses_once(
    settings: FeedSettings, target: FrozenTarget, files: list[Tensor], bos: int | None, context: TrainContext
) -> Windows:
    """The target's own texts: rank 0 has them written, or finds them from an earlier start of the same run."""
    config = settings.config
    key = json.dumps([asdict(config.responses), config.window, config.seed, settings.data, len(files)], default=str)
    path = settings.folder / f"responses-{hashlib.sha256(key.encode()).hexdigest()[:12]}.pt"
    if context.rank == 0 and not path.is_file():
        made = make_responses(target, files, config.window, bos, config.responses, config.seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".writing")
        torch.save(asdict(made), partial)
        os.replace(partial, path)
    context.barrier()
    return Windows(**torch.load(path, weights_only=True))


def open_feed(
    settings: FeedSettings, target: FrozenTarget, tokenizer: PreTrainedTokenizerBase, context: TrainContext
) -> Feed:
    """The data that `settings.data` names.

    Raises:
        ValueError: it names nothing that can be read.
    """
    if is_source_code(settings.data):
        return source_code_feed(settings, target, tokenizer, context)
    raise ValueError(f"{settings.data!r} is neither {STDLIB} nor a folder with Python files")
