# SPDX-License-Identifier: Apache-2.0
"""`python -m redrafter_training.trim SRC DST --target MODEL --data DATA --draft-vocab-size N`: trim a trained drafter.

The output layer keeps the rows of the N most frequent tokens of the data; nothing is trained. The data is given as for
training: `stdlib` or a folder of Python sources, a folder of responses, conversations. Only tokens that a training
would learn from are counted: not those held out, and not the user's.
"""

import argparse
import json
import sys
from collections.abc import Sequence

from redrafter_training.utils.command import run_command
from redrafter_training.utils.provenance import provenance
from redrafter_vllm.checkpoint.places import check_drafter_place, drafter_folder
from redrafter_vllm.utils.paths import user_path, user_place
from redrafter_vllm.utils.program import program

WINDOW = 2048


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    return run_command(lambda _: _main(args), lambda: f"interrupted: {args.destination} is unchanged")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program("redrafter_training.trim"), description=(__doc__ or "").partition(": ")[2]
    )
    parser.add_argument("source", metavar="SRC", type=user_path, help="the drafter's folder")
    parser.add_argument("destination", metavar="DST", type=user_path, help="new folder for the trimmed drafter")
    parser.add_argument(
        "--target", type=user_place, required=True, help="folder or hub name of the target, for its tokenizer"
    )
    parser.add_argument(
        "--data", type=user_place, required=True, help="stdlib, a folder of Python sources or responses, conversations"
    )
    parser.add_argument("--draft-vocab-size", type=int, required=True, help="number of tokens to keep")
    parser.add_argument("--window", type=int, default=WINDOW, help="tokens of a conversation that count")
    parser.add_argument("--overwrite", action="store_true", help="replace a drafter that is in DST already")
    parser.add_argument("--chat-template", type=user_place, help="as for training")
    parser.add_argument("--chat-template-kwargs", type=json.loads, default={}, help="as for training")
    parser.add_argument("--data-config", help="as for training")
    parser.add_argument("--data-split", help="as for training")
    parser.add_argument("--trust-remote-code", action="store_true", help="as for training")
    return parser


def _main(args: argparse.Namespace) -> int:
    # Imported here, since --help must not wait for torch and transformers.
    from transformers import AutoTokenizer

    from redrafter_training.run.preflight import check_target
    from redrafter_training.run.trimming import choose_tokens, data_frequencies, trim, write_trimmed_card
    from redrafter_vllm.model.drafter import Drafter

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
        command = provenance("redrafter_training.trim")["command"]
        write_trimmed_card(made, args.source, args.target, args.data, chosen, command)
    print(f"{args.destination}: {len(chosen.tokens)} tokens, {chosen.coverage:.2%} of the data's")
    return 0


if __name__ == "__main__":
    sys.exit(main())
