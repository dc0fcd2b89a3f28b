# SPDX-License-Identifier: Apache-2.0
"""`redrafter doctor`: what is installed, what will be used and why, what is missing and how to mend it.

The output has no paths of the home folder and no host name, so that it can be pasted into an issue.
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import partial

from redrafter_vllm.cli import findings, machine
from redrafter_vllm.cli.engine_choices import of_engine
from redrafter_vllm.utils import strict_json
from redrafter_vllm.utils.findings import Finding, Level, has_problem, report, without_home
from redrafter_vllm.utils.messages import one_line
from redrafter_vllm.utils.paths import user_place
from redrafter_vllm.utils.program import program

LOOKS: dict[str, Callable[[], Iterable[Finding]]] = {
    "packages": findings.packages,
    "vLLM": findings.vllm,
    "optional": findings.extras,
    "variables": findings.variables,
    "torch": machine.device,
    "memory": machine.memory,
    "disk": machine.disk,
    "drafters": findings.drafters,
}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program("redrafter_vllm.cli.doctor"),
        description="Report what is installed, what will be used and why, what is missing and how to mend it; exits "
        "with 1 if something keeps ReDrafter from working.",
    )
    parser.add_argument(
        "--target",
        type=user_place,
        help="also look for the drafter of this folder or hub id, "
        "say whether it fits, and what an engine would choose for both",
    )
    parser.add_argument("--drafter", type=user_place, help="with --target: this drafter (default: where serving looks)")
    parser.add_argument(
        "--vllm",
        metavar="PLACE",
        help="instead: which of vLLM's interfaces that this package uses are as listed in: installed, newest or a "
        "version such as 0.33.0 (whose wheel is downloaded), a wheel or a directory with vLLM's sources; exits with 1 "
        "if one is gone or has changed, or if this version of vLLM has not been tested",
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if arguments.drafter is not None and arguments.target is None:
        parser.error("--drafter needs --target: a drafter belongs to a target")
    if arguments.vllm is not None and arguments.target is not None:
        parser.error("--vllm is a report of its own: leave out --target")
    if arguments.vllm is not None:
        return _interface(arguments.vllm, arguments.json)
    found = examine(arguments.target, arguments.drafter)
    if arguments.json:
        parts = ({name: without_home(text) for name, text in asdict(finding).items()} for finding in found)
        print(strict_json.dumps(list(parts)))
    else:
        print(report(found), end="")
    return 1 if has_problem(found) else 0


def _interface(place: str, as_json: bool) -> int:
    try:
        from redrafter_vllm.integration.vllm_interface.check import examined
    except ImportError as error:
        print(f"reading vLLM's sources needs the package griffelib ({error}): pip install griffelib", file=sys.stderr)
        return 1
    try:
        report = examined(place)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    print(strict_json.dumps(report.as_json()) + "\n" if as_json else report.text(), end="")
    return 0 if report.is_good else 1


def examine(target: str | None = None, drafter: str | None = None) -> list[Finding]:
    """All findings about this machine, and about a target's drafter if one is named."""
    found = [finding for what, look in LOOKS.items() for finding in _guarded(what, look)]
    if target is not None:
        pair = list(_guarded("drafter", partial(findings.of_pair, target, drafter)))
        # An engine would refuse a pair that does not fit with the same words.
        found += pair if has_problem(pair) else [*pair, *_guarded("engine", partial(of_engine, target, drafter))]
    return found


def _guarded(what: str, look: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """What `look` finds; an error of a broken installation is a finding, too."""
    try:
        yield from look()
    except Exception as error:
        yield Finding(Level.PROBLEM, what, one_line(f"cannot be examined: {type(error).__name__}: {error}"))


if __name__ == "__main__":
    sys.exit(main())
