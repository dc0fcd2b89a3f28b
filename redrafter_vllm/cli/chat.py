# SPDX-License-Identifier: Apache-2.0
"""`redrafter chat [MODEL]`, or `redrafter chat --url URL`: a conversation, accepted drafts in colour.

MODEL is served by a `vllm serve` of its own, or with `--in-process` by an engine in this process. In a clone of the
repository it may be left out: SmolLM2 then answers, which is downloaded once.

Prompts come from standard input when it is no terminal: one line is one turn.
"""

import argparse
import os
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from functools import partial
from typing import Any, Protocol, TextIO

from redrafter_vllm.chat.answers import ChatError, Figures, Message, Piece, Server
from redrafter_vllm.chat.own_server import serving
from redrafter_vllm.cli.asking import (
    add_sampling,
    add_server,
    begin_of,
    check_server,
    counted,
    divided,
    end_of_waiting,
    sampling_of,
    speculative_of,
    waiting_for,
)
from redrafter_vllm.utils.program import program

ACCEPTED, DIM, PLAIN = "\033[30;42m", "\033[2m", "\033[0m"
NEW, QUIT = "/new", "/quit"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program("redrafter_vllm.cli.chat"),
        description="Talk to a model served with ReDrafter. Accepted drafts are coloured as they arrive; after each "
        f"answer come tokens per step and per second. {NEW} begins a new conversation, Ctrl-C stops an answer, "
        f"{QUIT} or Ctrl-D ends.",
        epilog="Options after -- are passed to vLLM, for instance: redrafter chat MODEL -- --max-model-len 2048",
    )
    add_server(parser, "start a server for this target (default: in a clone, SmolLM2-135M-Instruct with its drafter)")
    parser.add_argument("--in-process", action="store_true", help="run the engine in this process, without a server")
    add_sampling(parser)
    parser.add_argument(
        "--no-colour", action="store_true", help="mark accepted drafts with «»; also without a terminal"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    own, passed_on = divided(sys.argv[1:] if argv is None else argv)
    parser = build_parser()
    arguments = parser.parse_args(own)
    check_server(parser, arguments, passed_on)
    if arguments.in_process and arguments.url is not None:
        parser.error("--in-process cannot be had with --url: that server has its own engine")
    try:
        with ExitStack() as stack:
            return converse(_partner(arguments, passed_on, stack), arguments, sys.stdin, sys.stdout)
    except ChatError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130


class Partner(Protocol):
    """Who answers: a server, or an engine of this process."""

    def answer(self, messages: Sequence[Message], **sampling: Any) -> Generator[Piece, None, None]: ...


def _partner(arguments: argparse.Namespace, passed_on: Sequence[str], stack: ExitStack) -> Partner:
    """Starts what has to be started; `stack` ends it."""
    if arguments.url is not None:
        return Server(arguments.url, os.environ.get("OPENAI_API_KEY"))
    served = _what_to_serve(arguments, passed_on)
    if arguments.in_process:
        from redrafter_vllm.chat.own_engine import Engine  # imports vLLM when it starts

        with counted("the engine"):
            return Engine(*served)
    url = stack.enter_context(serving(*served, partial(waiting_for, "vllm serve")))
    end_of_waiting()
    return Server(url, os.environ.get("OPENAI_API_KEY"))


def _what_to_serve(
    arguments: argparse.Namespace, passed_on: Sequence[str]
) -> tuple[str, dict[str, Any], Sequence[str]]:
    """Target, speculative config and options of `vllm serve`. Raises ChatError where there is nothing to serve."""
    if arguments.model is not None:
        return arguments.model, speculative_of(arguments), passed_on
    from redrafter_vllm.watch.pair import chat_pair, find_assets, is_ready

    assets = find_assets()
    if assets is None:
        raise ChatError(
            "name a MODEL to serve, or the --url of a running server, or call this in a clone of the repository, which "
            "has the drafter of a chat model"
        )
    pair = chat_pair(assets)
    if not is_ready(pair):
        raise ChatError("without it, name a MODEL to serve, or the --url of a running server")
    print(f"target {pair.target}\ndrafter {pair.drafter}", file=sys.stderr)
    return str(pair.target), {**pair.speculative, **arguments.speculative}, [*pair.options, *passed_on]


def converse(partner: Partner, arguments: argparse.Namespace, source: TextIO, screen: TextIO) -> int:
    """Turns until the input ends; an interrupted answer stays as far as it came."""
    colour = screen.isatty() and not arguments.no_colour
    begin, sampling = begin_of(arguments), sampling_of(arguments)
    said = list(begin)
    for prompt in _prompts(source, screen):
        if prompt == QUIT:
            break
        if prompt == NEW:
            said = list(begin)
            continue
        said.append({"role": "user", "content": prompt})
        try:
            figures = _answer(partner, said, sampling, screen, colour)
        except ChatError as error:
            if not source.isatty():
                raise
            # At a terminal a turn that is too long, for instance, does not end the conversation.
            print(error, file=sys.stderr)
            said.pop()
            continue
        said.append({"role": "assistant", "content": figures.text})
        print(_summary(figures, colour), file=screen, flush=True)
    return 0


def _prompts(source: TextIO, screen: TextIO) -> Iterator[str]:
    """Lines that say something; from a terminal with a prompt."""
    if source.isatty():
        import readline  # noqa: F401  # lines can be edited and recalled
    while True:
        if source.isatty():
            try:
                line = input("> ")
            except EOFError:
                print(file=screen)
                return
            except KeyboardInterrupt:  # meant for the line, or for an answer that had just ended
                print(f"\n({QUIT} or Ctrl-D ends)", file=screen)
                continue
        elif not (line := source.readline()):
            return
        if line.strip():
            yield line.strip()


def _answer(
    partner: Partner, said: Sequence[dict[str, str]], sampling: dict[str, Any], screen: TextIO, colour: bool
) -> Figures:
    figures, since, thinks = Figures(), 0.0, False
    mark = (ACCEPTED, PLAIN) if colour else ("«", "»")
    try:
        with closing(partner.answer(said, **sampling)) as pieces:
            for piece in pieces:
                since = since or time.monotonic()
                figures.add(piece, time.monotonic() - since)
                if thinks and not piece.thought:
                    print("\n", file=screen)  # the answer begins
                thinks = bool(piece.thought)
                drafted = f"{mark[0]}{piece.drafted}{mark[1]}" if piece.drafted else ""
                print(drafted + piece.own, end="", file=screen, flush=True)
    except KeyboardInterrupt:
        print(" (stopped)", end="", file=screen)
    return figures


def _summary(figures: Figures, colour: bool) -> str:
    parts = [f"{figures.tokens} tokens in {figures.steps} steps"]
    if figures.tokens_per_step is not None:
        parts.append(f"{figures.tokens_per_step:.2f} tokens per step")
    if figures.tokens_per_second is not None:
        parts.append(f"{figures.tokens_per_second:.1f} tokens/s")
    text = ", ".join(parts)
    return f"\n{DIM}[{text}]{PLAIN}\n" if colour else f"\n[{text}]\n"


if __name__ == "__main__":
    sys.exit(main())
