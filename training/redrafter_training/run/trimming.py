# SPDX-License-Identifier: Apache-2.0
"""A trained drafter's output layer reduced to the most frequent tokens of some data; nothing is trained."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from redrafter_training.config.recipe import LONGEST_REPEAT
from redrafter_training.data.division import hold_out
from redrafter_training.data.prepare import load_examples
from redrafter_training.data.python_corpus import corpus_root, is_source_code, load_corpus
from redrafter_training.data.python_corpus import split as split_sources
from redrafter_training.data.tokenize import ExampleEncoder
from redrafter_training.data.vocab_mapping import (
    DraftVocabulary,
    choose_draft_vocabulary,
    example_frequencies,
    token_frequencies,
)
from redrafter_training.data.windows import encode_files
from redrafter_training.responses.examples import load_responses
from redrafter_training.responses.store import is_response_folder
from redrafter_training.trainer.card import commands_text, history_sections
from redrafter_vllm.checkpoint.card import describe_target, markdown_table, place_name, write_card
from redrafter_vllm.checkpoint.places import read_provenance
from redrafter_vllm.checkpoint.vocab_mapping import MAP, check_target_ids, to_offsets
from redrafter_vllm.model.drafter import Drafter


def trim(drafter: Drafter, tokens: Tensor) -> Drafter:
    """A copy of `drafter` that proposes only `tokens`: [D] int64 target ids, ascending.

    Raises:
        ValueError: `tokens` are not ascending, outside the vocabulary, or not all proposed by `drafter`.
    """
    check_target_ids(tokens, drafter.config.vocab_size)
    known = drafter.draft_tokens
    if known is None:
        known = torch.arange(drafter.config.vocab_size)
    rows = torch.searchsorted(known, tokens).clamp(max=len(known) - 1)
    if not torch.equal(known[rows], tokens):
        raise ValueError(f"the drafter proposes {len(known)} tokens, and not all of those to trim it to")
    output = f"lm_head.{drafter.config.num_draft_layers}.weight"
    tensors = drafter.state_dict()
    with torch.device("meta"):
        trimmed = Drafter(replace(drafter.config, draft_vocab_size=len(tokens)))
    offsets = to_offsets(tokens)
    trimmed.load_state_dict(tensors | {MAP: offsets, output: tensors[output][rows]}, assign=True)
    return trimmed.eval()


def write_trimmed_card(
    folder: Path, source: Path, target: str, data: str, chosen: DraftVocabulary, command: str
) -> None:
    """Writes the card of the drafter in `folder`, trimmed from the one in `source`; figures of the latter are left out.

    Args:
        data: that the tokens were counted in.
        command: that trimmed it.
    """
    report = read_provenance(source)
    rows = [
        ("trimmed from", place_name(str(source))),
        ("to the most frequent tokens of", place_name(data)),
        ("tokens of that data within the draft vocabulary", f"{chosen.coverage:.2%}"),
    ]
    known = describe_target(target, report.get("target_content", {}).get("weights"))
    sections = {"Trimming": markdown_table(("", ""), rows)}
    sections |= {f"{name} before trimming": text for name, text in history_sections(report).items()}
    sections["Repeat it"] = commands_text(report, command)
    write_card(folder, known, origin=f"Trimmed from the drafter {place_name(str(source))}.", sections=sections)


def data_frequencies(
    data: str,
    tokenizer: PreTrainedTokenizerBase,
    vocab_size: int,
    window: int,
    chat_template: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    *,
    config: str | None = None,
    split: str | None = None,
) -> Tensor:
    """The frequency of each token among those that a training on `data` would learn from: [V] float64, with sum 1.

    Raises:
        DataError: `data` cannot be read or used.
    """
    if is_response_folder(data):
        examples = load_responses(Path(data), tokenizer, window, LONGEST_REPEAT).training
    elif is_source_code(data):
        training = split_sources(load_corpus(corpus_root(data)))[0]
        return token_frequencies(encode_files(training, tokenizer), [], 0.0, vocab_size)
    else:
        encoder = ExampleEncoder(tokenizer, window, chat_template, chat_template_kwargs or {}, vocab_size)
        examples, _ = hold_out(load_examples(None, data, encoder, config=config, split=split, quiet=True)[0])
    return example_frequencies(examples, [], 0.0, vocab_size)


def choose_tokens(drafter: Drafter, frequencies: Tensor, size: int) -> DraftVocabulary:
    """The `size` most frequent tokens among those that `drafter` proposes.

    Raises:
        ValueError: `size` is less than 1, or not less than the number of tokens that the drafter proposes.
    """
    if not 1 <= size < drafter.config.output_size:
        raise ValueError(f"cannot trim a drafter of {drafter.config.output_size} tokens to {size}")
    if drafter.draft_tokens is not None:
        absent = torch.ones(drafter.config.vocab_size, dtype=torch.bool)
        absent[drafter.draft_tokens] = False
        frequencies = frequencies.masked_fill(absent, -1.0)
    return choose_draft_vocabulary(frequencies, size)
