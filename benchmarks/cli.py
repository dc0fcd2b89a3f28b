# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks' commands have in common: options, how a result is shown and recorded, how errors end."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

from benchmarks.record import RESULTS, record
from redrafter_vllm.bench.child import ChildError
from redrafter_vllm.utils.messages import sentence
from redrafter_vllm.utils.paths import user_path, user_place

MIN_COLUMNS = 120  # of tables, also in a log

Report = dict[str, Any]

Options = TypeVar("Options")  # parsed ones, with `out` and perhaps `device`, whose name the record has


def make_parser(module: str, description: str) -> argparse.ArgumentParser:
    """A parser for `python -m module`, whose help shows defaults."""
    return argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=description,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )


def add_target(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--target", type=user_path, required=True, help="folder of the target")


def add_drafter(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--drafter", type=user_place, help="the drafter's folder (None: where serving finds it)")


def add_beams(parser: argparse.ArgumentParser, *, width: bool = True, length: int = 4) -> None:
    """Without `width`, the command has several widths and its own option for them."""
    if width:
        parser.add_argument("--beam-width", type=int, default=4, help="beams")
    parser.add_argument("--beam-length", type=int, default=length, help="draft tokens per beam, the root not counted")


def add_prompts(parser: argparse.ArgumentParser, *, prompts: int, new_tokens: int) -> None:
    parser.add_argument("--prompts", type=int, default=prompts, help="prompts from files held out of all training")
    parser.add_argument("--new-tokens", type=int, default=new_tokens, help="tokens that each prompt is continued by")


def add_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=user_path, default=RESULTS, help="folder for the JSON file")


def wide_console() -> Console:
    """A console at least `MIN_COLUMNS` wide."""
    return Console(width=max(MIN_COLUMNS, Console().width))


def ending(body: Callable[[], int]) -> int:
    """The exit status of `body`; 1 after an error of the inputs or of a child process, which is printed to stderr."""
    try:
        return body()
    except OSError as error:
        print(sentence(error), file=sys.stderr)
    except (ValueError, ChildError) as error:
        print(error, file=sys.stderr)
    return 1


def run_benchmark(
    module: str,
    argv: Sequence[str] | None,
    parse: Callable[[Sequence[str]], Options],
    measure: Callable[[Options, Console], Report],
    show: Callable[[Report, Console], None],
    *,
    passed: Callable[[Report], bool] = lambda report: True,
    record_failed: bool = True,
    name: Callable[[Options], str] | None = None,
    beside: Callable[[Report, Path], Sequence[Path]] = lambda report, file: (),
) -> int:
    """Parse, measure, show, record in the folder `--out`; the exit status.

    Args:
        module: The command's module, for the record.
        argv: Arguments; None takes the process's.
        passed: Whether the report shows what it must; if not, the exit status is 1.
        record_failed: Record a report that did not pass.
        name: The beginning of the record's file name; None takes the module's.
        beside: Writes further files for a record and returns their paths.
    """
    arguments = sys.argv[1:] if argv is None else argv

    def body() -> int:
        options, console = parse(arguments), wide_console()
        report = measure(options, console)
        show(report, console)
        succeeded = passed(report)
        if succeeded or record_failed:
            given = vars(options)
            chosen = None if name is None else name(options)
            file = record(module, arguments, report, given["out"], given.get("device", "cpu"), name=chosen)
            for written in (file, *beside(report, file)):
                console.print(str(written), soft_wrap=True)
        return 0 if succeeded else 1

    return ending(body)
