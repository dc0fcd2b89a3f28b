# SPDX-License-Identifier: Apache-2.0
"""`redrafter watch`: plain decoding beside ReDrafter on the same prompt, with the draft tree of every step.

The two sides are measured one after the other, so that they do not take cores or a GPU from each other, and then shown
on one clock.
"""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from redrafter_vllm.cli.asking import (
    add_sampling,
    add_server,
    begin_of,
    check_server,
    divided,
    sampling_of,
    speculative_of,
    waiting_for,
)
from redrafter_vllm.utils.paths import PlaceError, check_file, user_path
from redrafter_vllm.utils.program import COMMAND, program

if TYPE_CHECKING:
    from redrafter_vllm.watch.measure import Question
    from redrafter_vllm.watch.pair import Pair
    from redrafter_vllm.watch.race import Race

MAX_TOKENS = 96
PROMPT = "Why is the sky blue?"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program("redrafter_vllm.cli.watch"),
        description="Watch plain decoding beside ReDrafter on the same prompt: accepted drafts coloured by depth, the "
        "draft tree of every step with the accepted path, tokens per step and per second. Both are measured one after "
        "the other and then shown on one clock.",
        epilog="Options after -- are passed to vllm serve, for instance: redrafter watch MODEL -- --max-model-len 2048",
    )
    add_server(
        parser,
        "start servers for this target (default in a clone: SmolLM2-135M-Instruct, which is downloaded once, 93 MB)",
    )
    parser.add_argument(
        "--small",
        action="store_true",
        help="instead of a MODEL: the repository's small pair, which continues Python sources and needs no download",
    )
    parser.add_argument(
        "--plain-url", help="with --url: the server of the plain side (default: the same with drafts switched off)"
    )
    parser.add_argument("--prompt", help=f"what both are asked (default: {PROMPT})")
    parser.add_argument(
        "--live",
        action="store_true",
        help="at a terminal: draw the trees while the answer streams, too; reading them slows the side with drafts",
    )
    parser.add_argument("--text", action="store_true", help="the prompt is a text to be continued, not a chat turn")
    add_sampling(parser, MAX_TOKENS)
    parser.add_argument(
        "--export",
        type=user_path,
        action="append",
        default=[],
        metavar="FILE",
        help="write .svg (a picture), .gif or .html (the replay); may be given several times",
    )
    parser.add_argument("--overwrite", action="store_true", help="with --export: replace files")
    parser.add_argument("--size", type=_size, default=(120, 24), metavar="COLUMNSxLINES", help="of what is exported")
    parser.add_argument("--slower", type=int, metavar="TIMES", help="pace of the replay (default: by its length)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    own, passed_on = divided(sys.argv[1:] if argv is None else argv)
    parser = build_parser()
    arguments = parser.parse_args(own)
    _check(parser, arguments, passed_on)
    # Imported here, since --help must not wait for them.
    from redrafter_vllm.chat.answers import ChatError
    from redrafter_vllm.watch.export import ExportError, check_export

    try:
        for path in arguments.export:
            check_export(path)
            check_file(path, overwrite=arguments.overwrite)
        _watch(arguments, passed_on)
        return 0
    except (ChatError, ExportError, PlaceError) as error:
        hint = " (--text continues the prompt instead)" if "chat template" in str(error) else ""
        print(f"{error}{hint}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; servers that were started have ended", file=sys.stderr)
        return 130


def _check(parser: argparse.ArgumentParser, arguments: argparse.Namespace, passed_on: Sequence[str]) -> None:
    check_server(parser, arguments, passed_on)
    if arguments.small and (arguments.model is not None or arguments.url is not None):
        parser.error("--small is a pair of its own: give neither a MODEL nor --url")
    if arguments.plain_url is not None and arguments.url is None:
        parser.error("--plain-url needs --url, the server that drafts")
    if arguments.max_tokens < 2:
        parser.error(f"--max-tokens must be at least 2, not {arguments.max_tokens}: the first comes with the prompt")
    if arguments.slower is not None and arguments.slower < 1:
        parser.error(f"--slower must be at least 1, not {arguments.slower}")


def _watch(arguments: argparse.Namespace, passed_on: Sequence[str]) -> None:
    from rich.console import Console

    from redrafter_vllm.watch.export import Exporter
    from redrafter_vllm.watch.replay import print_end, replay

    width, height = arguments.size
    console = Console() if sys.stdout.isatty() else Console(width=width, height=height)
    race = _attached(arguments, console) if arguments.url is not None else _started(arguments, passed_on, console)
    slow_motion = arguments.slower or race.slow_motion
    if console.is_terminal:
        replay(race, console, slow_motion)
    print_end(race, console)
    for path in arguments.export:
        Exporter(race, width, height, slow_motion).save(path)
        console.print(str(path), markup=False, highlight=False, soft_wrap=True)


def _attached(arguments: argparse.Namespace, console: Any) -> "Race":
    """Both sides of running servers."""
    from redrafter_vllm.watch.measure import measure, measure_plain
    from redrafter_vllm.watch.race import Race
    from redrafter_vllm.watch.recording import Recording
    from redrafter_vllm.watch.replay import measuring

    drafting = _server(arguments.url)
    plain = drafting if arguments.plain_url is None else _server(arguments.plain_url)
    title = "plain: the same server, drafts off" if plain is drafting else f"plain: {arguments.plain_url}"
    question = _question(arguments, arguments.prompt or PROMPT, arguments.text)
    live = arguments.live and console.is_terminal
    race = Race(question.prompt, Recording(title), Recording(f"ReDrafter: {arguments.url}"))
    with measuring(race, console) as drawing:
        measure_plain(plain, question, race.plain, drawing("1 of 2: measuring plain decoding"))
        measure(drafting, question, race.drafted, drawing("2 of 2: measuring ReDrafter"), live=live)
    return race


def _started(arguments: argparse.Namespace, passed_on: Sequence[str], console: Any) -> "Race":
    """Both sides of servers of our own, which run one after the other: the same command with drafts and without."""
    from redrafter_vllm.chat.own_server import serving
    from redrafter_vllm.watch import engine_trees
    from redrafter_vllm.watch.measure import measure, measure_plain
    from redrafter_vllm.watch.race import Race
    from redrafter_vllm.watch.recording import Recording
    from redrafter_vllm.watch.replay import measuring

    target, speculative, options, question = _what_to_serve(arguments, passed_on)
    live = arguments.live and console.is_terminal
    race = Race(question.prompt, Recording("plain vLLM"), Recording("vLLM with ReDrafter"))
    start = partial(serving, target, None, options, partial(waiting_for, "plain vLLM, 1 of 2"))
    with start() as url, measuring(race, console) as drawing:
        measure_plain(_server(url), question, race.plain, drawing("1 of 2: measuring plain vLLM"))
    options += engine_trees.OPTIONS
    start = partial(serving, target, speculative, options, partial(waiting_for, "vLLM with ReDrafter, 2 of 2"))
    with start(engine_trees.ENVIRONMENT) as url, measuring(race, console) as drawing:
        measure(_server(url), question, race.drafted, drawing("2 of 2: measuring vLLM with ReDrafter"), live=live)
    return race


def _what_to_serve(
    arguments: argparse.Namespace, passed_on: Sequence[str]
) -> tuple[str, dict[str, Any], list[str], "Question"]:
    """Target, speculative config, options of `vllm serve`, and the question."""
    if arguments.model is not None:
        question = _question(arguments, arguments.prompt or PROMPT, arguments.text)
        return arguments.model, speculative_of(arguments), list(passed_on), question
    pair = _demonstration(small=arguments.small)
    print(f"target {pair.target}\ndrafter {pair.drafter}", file=sys.stderr)
    question = _question(arguments, arguments.prompt or pair.prompt, pair.is_text or arguments.text)
    return str(pair.target), {**pair.speculative, **arguments.speculative}, [*pair.options, *passed_on], question


def _demonstration(*, small: bool) -> "Pair":
    """The chat pair, whose target is downloaded where it is not here yet; the small pair if wanted, or if that fails.

    Raises ChatError outside a clone, which has the drafters.
    """
    from redrafter_vllm.chat.answers import ChatError
    from redrafter_vllm.watch.pair import FETCH, chat_pair, find_assets, is_ready, small_pair

    assets = find_assets()
    if assets is None:
        raise ChatError(
            "name a MODEL to serve, or the --url of a running server, or call this in a clone of the repository, which "
            "has a pair to show"
        )
    if small:
        return small_pair(assets)
    pair = chat_pair(assets)
    if is_ready(pair, "; --small needs no download"):
        return pair
    print(
        "going on with the small pair of the repository, which continues Python sources and is too small to gain by "
        f"drafts; for the chat model call {COMMAND} {FETCH} later",
        file=sys.stderr,
    )
    return small_pair(assets)


def _question(arguments: argparse.Namespace, prompt: str, is_text: bool) -> "Question":
    from redrafter_vllm.watch.measure import Question

    return Question(prompt, is_text, begin_of(arguments), sampling_of(arguments))


def _server(url: str) -> Any:
    from redrafter_vllm.chat.answers import Server

    return Server(url, os.environ.get("OPENAI_API_KEY"))


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{2,3})x(\d{2,3})", text)
    if not found or int(found[1]) < 40 or int(found[2]) < 20:
        raise argparse.ArgumentTypeError(f"{text!r} is no size of at least 40x20, such as 120x30")
    return int(found[1]), int(found[2])


if __name__ == "__main__":
    sys.exit(main())
