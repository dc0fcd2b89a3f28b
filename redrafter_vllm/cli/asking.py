# SPDX-License-Identifier: Apache-2.0
"""What commands that ask a server share: its options, those of sampling, starting one of their own."""

import argparse
import json
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from redrafter_vllm.utils.paths import user_place

MAX_TOKENS = 512
DRAFTER = "redrafter"  # the one that belongs to the target


def add_server(parser: argparse.ArgumentParser, model_help: str = "start a server for this target") -> None:
    """MODEL, --url, --drafter and --speculative."""
    parser.add_argument("model", nargs="?", metavar="MODEL", type=user_place, help=model_help)
    parser.add_argument("--url", help="attach to a running server, for instance http://localhost:8000")
    parser.add_argument("--drafter", type=user_place, default=DRAFTER, help="with MODEL: folder or hub id")
    parser.add_argument(
        "--speculative", type=_json_object, default={}, metavar="JSON", help="with MODEL: further drafting options"
    )


def check_server(parser: argparse.ArgumentParser, arguments: argparse.Namespace, passed_on: Sequence[str]) -> None:
    """Refuse what does not go together; `passed_on` are the options behind `--`."""
    if arguments.model is not None and arguments.url is not None:
        parser.error("give either a MODEL to serve or the --url of a running server")
    if arguments.model is None and arguments.drafter != DRAFTER:
        parser.error("--drafter needs a MODEL, the target that it drafts for")
    if passed_on and arguments.url is not None:
        parser.error("options behind -- are for vllm serve, which is not started with --url")


def add_sampling(parser: argparse.ArgumentParser, max_tokens: int = MAX_TOKENS) -> None:
    """--temperature, --seed, --max-tokens and --system."""
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy")
    parser.add_argument("--seed", type=int, help="of sampling")
    parser.add_argument("--max-tokens", type=int, default=max_tokens, help="tokens of an answer, at most")
    parser.add_argument("--system", help="system message")


def divided(given: Sequence[str]) -> tuple[list[str], list[str]]:
    """Arguments before and behind the first `--`; those behind are for `vllm serve`."""
    place = given.index("--") if "--" in given else len(given)
    return list(given[:place]), list(given[place + 1 :])


def sampling_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """The fields of a request."""
    sampling: dict[str, Any] = {"temperature": arguments.temperature, "max_tokens": arguments.max_tokens}
    if arguments.seed is not None:
        sampling["seed"] = arguments.seed
    return sampling


def begin_of(arguments: argparse.Namespace) -> list[dict[str, str]]:
    """The messages before the first turn."""
    return [{"role": "system", "content": arguments.system}] if arguments.system else []


def speculative_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """vLLM's speculative config for a server of one's own.

    Its trees are fixed, as drafts are what is to be seen: an engine that adapts may leave them out for a while.
    """
    return {"method": "redrafter", "model": arguments.drafter, "adaptive": False, **arguments.speculative}


def waiting_for(what: str, seconds: float) -> None:
    """The seconds since a start; only at a terminal, where they overwrite each other."""
    if sys.stderr.isatty():
        print(f"\rstarting {what}, {seconds:.0f} s", end="", file=sys.stderr, flush=True)


@contextmanager
def counted(what: str) -> Iterator[None]:
    """Shows the seconds of a start in this process, in which nobody else has time for it."""
    over, started = threading.Event(), time.monotonic()

    def count() -> None:
        while not over.wait(0.2):
            waiting_for(what, time.monotonic() - started)

    counting = threading.Thread(target=count, daemon=True)
    counting.start()
    try:
        yield
    finally:
        over.set()
        counting.join()
        end_of_waiting()


def end_of_waiting() -> None:
    """What comes next begins on a line of its own."""
    if sys.stderr.isatty():
        print(file=sys.stderr)


def _json_object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(f'{text!r} is no JSON object such as {{"beam_width": 4}}')
    return found
