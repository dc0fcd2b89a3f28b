# SPDX-License-Identifier: Apache-2.0
"""`python -m redrafter_training.trim SRC DST --target MODEL --data DATA --draft-vocab-size N`: a trained drafter, trimmed.

The output layer keeps the rows of the N tokens that the data has most of; nothing is trained. The data is named as for
training: `stdlib` or a folder of Python sources, a folder of answers, conversations. Of answers and conversations only
what would be learned counts, of any data nothing that is held out.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from redrafter_training.config.recipe import LONGEST_REPEAT
from redrafter_training.data.batches import hold_out
from redrafter_training.data.prepare import load_examples
from redrafter_training.data.python_corpus import corpus_root, is_source_code, load_corpus
from redrafter_training.data.python_corpus import split as split_sources
from redrafter_training.data.tokenize import ExampleEncoder
from redrafter_training.data.vocab_mapping import DraftVocabulary, choose_draft_vocabulary, token_frequencies
from redrafter_training.data.windows import encode_files
from redrafter_training.responses.examples import load_responses
from redrafter_training.responses.store import is_response_folder
from redrafter_training.run.preflight import check_target
from redrafter_training.utils.command import run_command
from redrafter_vllm.checkpoint.places import check_drafter_place, drafter_folder
from redrafter_vllm.checkpoint.vocab_mapping import MAP, check_target_ids, to_offsets
from redrafter_vllm.model.drafter import Drafter
from redrafter_vllm.utils.paths import user_path, user_place

WINDOW = 2048  # tokens of a conversation that count


def trim(drafter: Drafter, tokens: Tensor) -> Drafter:
    """A drafter that proposes from `tokens` [D] alone, ascending target ids, as `drafter` would.

    Raises:
        ValueError: ids out of order or of the vocabulary, or tokens that `drafter` does not propose.
    """
    check_target_ids(tokens, drafter.config.vocab_size)
    known = drafter.draft_tokens
    if known is None:
        known = torch.arange(drafter.config.vocab_size)
    rows = torch.searchsorted(known, tokens).clamp(max=len(known) - 1)
    if not torch.equal(known[rows], tokens):
        raise ValueError(f"the drafter proposes {len(known)} tokens, and not all that it should be trimmed to")
    output = f"lm_head.{drafter.config.num_draft_layers}.weight"
    tensors = drafter.state_dict()
    with torch.device("meta"):
        trimmed = Drafter(replace(drafter.config, draft_vocab_size=len(tokens)))
    offsets = to_offsets(tokens)
    trimmed.load_state_dict(tensors | {MAP: offsets, output: tensors[output][rows]}, assign=True)
    return trimmed.eval()


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
    """How often each token is met in what a training on `data` would learn from: [V], adding up to 1.

    Raises:
        DataError: `data` names nothing that can be read or used.
    """
    if is_response_folder(data):
        examples = load_responses(Path(data), tokenizer, window, LONGEST_REPEAT).training
    elif is_source_code(data):
        training = split_sources(load_corpus(corpus_root(data)))[0]
        return token_frequencies(encode_files(training, tokenizer), [], 0.0, vocab_size)
    else:
        encoder = ExampleEncoder(tokenizer, window, chat_template, chat_template_kwargs or {}, vocab_size)
        examples, _ = hold_out(load_examples(None, data, encoder, config=config, split=split, quiet=True)[0])
    return token_frequencies([example.tokens[example.loss].long() for example in examples], [], 0.0, vocab_size)


def choose_tokens(drafter: Drafter, frequencies: Tensor, size: int) -> DraftVocabulary:
    """The `size` most frequent tokens among those that `drafter` proposes.

    Raises:
        ValueError: `size` is less than 1, or not less than what the drafter proposes.
    """
    if not 1 <= size < drafter.config.output_size:
        raise ValueError(f"cannot trim a drafter of {drafter.config.output_size} tokens to {size}")
    if drafter.draft_tokens is not None:
        absent = torch.ones(drafter.config.vocab_size, dtype=torch.bool)
        absent[drafter.draft_tokens] = False
        frequencies = frequencies.masked_fill(absent, -1.0)
    return choose_draft_vocabulary(frequencies, size)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m redrafter_training.trim", description=(__doc__ or "").partition(": ")[2]
    )
    parser.add_argument("source", metavar="SRC", type=user_path, help="the drafter's folder")
    parser.add_argument("destination", metavar="DST", type=user_path, help="new folder for the trimmed one")
    parser.add_argument(
        "--target", type=user_place, required=True, help="folder or hub name of the target, for its tokenizer"
    )
    parser.add_argument(
        "--data", type=user_place, required=True, help="stdlib, a folder of Python sources or of answers, conversations"
    )
    parser.add_argument("--draft-vocab-size", type=int, required=True, help="tokens to keep")
    parser.add_argument("--window", type=int, default=WINDOW, help="tokens of a conversation that count")
    parser.add_argument("--overwrite", action="store_true", help="replace a drafter that is in DST already")
    parser.add_argument("--chat-template", type=user_place, help="as for training")
    parser.add_argument("--chat-template-kwargs", type=json.loads, default={}, help="as for training")
    parser.add_argument("--data-config", help="as for training")
    parser.add_argument("--data-split", help="as for training")
    parser.add_argument("--trust-remote-code", action="store_true", help="as for training")
    args = parser.parse_args(argv)
    return run_command(lambda _: _main(args), lambda: f"interrupted: {args.destination} is as it was")


def _main(args: argparse.Namespace) -> int:
    check_drafter_place(args.destination, replace=args.overwrite)
    drafter = Drafter.from_pretrained(args.source, dtype=None)
    check_target(args.target, trust_remote_code=args.trust_remote_code)
    frequencies = data_frequencies(
        args.data,
        AutoTokenizer.from_pretrained(args.target, trust_remote_code=args.trust_remote_code),
        drafter.config.vocab_size,
        args.window,
        args.chat_template,
        args.chat_template_kwargs,
        config=args.data_config,
        split=args.data_split,
    )
    chosen = choose_tokens(drafter, frequencies, args.draft_vocab_size)
    with drafter_folder(args.destination, replace=args.overwrite) as made:
        trim(drafter, chosen.tokens).save_pretrained(made)
    print(f"{args.destination}: {len(chosen.tokens)} tokens, {chosen.coverage:.2%} of the data's")
    return 0


if __name__ == "__main__":
    sys.exit(main())
