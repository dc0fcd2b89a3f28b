# SPDX-License-Identifier: Apache-2.0
"""`redrafter inspect DRAFTER`: what a drafter is, whether it fits a target, and with `--tree PROMPT` its trees."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from redrafter_vllm.checkpoint.locate import WORD
from redrafter_vllm.config import DraftingConfig
from redrafter_vllm.utils.messages import sentence
from redrafter_vllm.utils.paths import check_file, user_path, user_place
from redrafter_vllm.utils.program import program

MAX_TOKENS = 24


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program("redrafter_vllm.cli.inspect"),
        description="Show what a drafter is, with --target whether it fits, and with --tree the draft trees for a "
        "prompt, step by step, with the drafter's probabilities, the survival that serving expects, and what the "
        "target says at each token (greedily, in float32, on the CPU). Exits with 1 where the drafter does not fit.",
    )
    parser.add_argument(
        "drafter",
        metavar="DRAFTER",
        type=user_place,
        help=f"folder or hub id of the drafter; with --target also the word {WORD}: the one that serving finds",
    )
    parser.add_argument(
        "--target", type=user_place, help="folder or hub id of a target: does the drafter fit it? Its files are read"
    )
    parser.add_argument("--tree", metavar="PROMPT", help="with --target: draw the trees for this prompt")
    parser.add_argument("--html", type=user_path, help="with --tree: write a page with the trees to this file")
    parser.add_argument("--overwrite", action="store_true", help="with --html: replace the file")
    parser.add_argument("--plain", action="store_true", help="with --tree: the prompt is plain text, not a chat turn")
    parser.add_argument("--max-tokens", type=int, default=MAX_TOKENS, help="with --tree: tokens of the answer")
    parser.add_argument("--beam-width", type=int, default=4, help="beams")
    parser.add_argument("--beam-length", type=int, default=4, help="draft tokens per beam, the root not counted")
    parser.add_argument("--no-copies", action="store_true", help="trees of the drafter's beams alone, not of the text")
    parser.add_argument("--nodes", type=int, default=0, help="nodes of a tree (default: as serving chooses)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if arguments.target is None and arguments.tree is not None:
        parser.error("--tree needs --target: a tree is drawn from a target's hidden state")
    if arguments.target is None and arguments.drafter == WORD:
        parser.error(f"{WORD} stands for the drafter of a target: add --target MODEL, or name the drafter")
    if arguments.html is not None and arguments.tree is None:
        parser.error("--html needs --tree")
    if arguments.max_tokens < 2:
        parser.error(f"--max-tokens must be at least 2, not {arguments.max_tokens}: the first comes with the prompt")
    try:
        drafting = DraftingConfig(
            arguments.beam_width, arguments.beam_length, arguments.nodes, prompt_lookup=not arguments.no_copies
        )
        return _inspect(arguments, drafting)
    except ValueError as error:  # of options, of the checkpoint, of a target that it does not fit
        print(error, file=sys.stderr)
    except OSError as error:
        print(sentence(error), file=sys.stderr)
    return 1


def _inspect(arguments: argparse.Namespace, drafting: DraftingConfig) -> int:
    # Imported here, since --help must not wait for torch.
    from redrafter_vllm.checkpoint.locate import resolve_drafter
    from redrafter_vllm.inspection.facts import read_facts
    from redrafter_vllm.inspection.fit import fit
    from redrafter_vllm.utils.findings import has_problem, report

    if arguments.html is not None:
        check_file(arguments.html, overwrite=arguments.overwrite)
    folder = resolve_drafter(arguments.drafter, arguments.target or "")
    facts = read_facts(folder, drafting)
    width = max(map(len, facts))
    for label, text in facts.items():
        print(f"{label:<{width}}  {text}")
    if arguments.target is None:
        return 0
    findings = list(fit(folder, arguments.target))
    print(f"\nfor the target {arguments.target}:\n{report(findings)}", end="")
    if has_problem(findings):
        return 1
    if arguments.tree is not None:
        _draw(arguments, folder, drafting, facts | {f"target's {found.what}": found.says for found in findings})
    return 0


def _draw(arguments: argparse.Namespace, folder: Path, drafting: DraftingConfig, facts: dict[str, str]) -> None:
    from redrafter_vllm.inspection.artist import Artist
    from redrafter_vllm.inspection.as_html import trees_page
    from redrafter_vllm.inspection.as_text import trees_text
    from redrafter_vllm.utils.atomic import write_text

    artist = Artist(arguments.target, folder, drafting)
    prompt = artist.encode(arguments.tree, chat=artist.has_chat_template and not arguments.plain)
    drawing = artist.draw(prompt, arguments.max_tokens)
    print()
    print(trees_text(drawing, colour=sys.stdout.isatty()), end="")
    if arguments.html is not None:
        write_text(arguments.html, trees_page(arguments.tree, facts, drawing))
        print(arguments.html)


if __name__ == "__main__":
    sys.exit(main())
