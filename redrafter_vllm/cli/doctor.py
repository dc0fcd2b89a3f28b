# SPDX-License-Identifier: Apache-2.0
"""`redrafter doctor`: what is installed, what will be used and why, what is missing and how to mend it.

The output has no paths of the home folder and no host name, so that it can be pasted into an issue.
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from redrafter_vllm.cli.findings import LOOKS, Finding, Level, of_pair
from redrafter_vllm.utils import strict_json
from redrafter_vllm.utils.messages import one_line
from redrafter_vllm.utils.paths import user_place
from redrafter_vllm.utils.program import program

MARKS = {Level.OK: "ok", Level.NOTE: "note", Level.PROBLEM: "PROBLEM"}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program("redrafter_vllm.cli.doctor"),
        description="Report what is installed, what will be used and why, what is missing and how to mend it; exits "
        "with 1 if something keeps ReDrafter from working.",
    )
    parser.add_argument("--target", type=user_place, help="also look for the drafter of this folder or hub id")
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
    findings = examine(arguments.target, arguments.drafter)
    if arguments.json:
        print(strict_json.dumps([asdict(finding) for finding in findings]))
    else:
        print(report(findings), end="")
    return 1 if any(finding.level is Level.PROBLEM for finding in findings) else 0


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
    looks = dict(LOOKS)
    if target is not None:
        looks["drafter"] = partial(of_pair, target, drafter)
    return [finding for what, look in looks.items() for finding in _guarded(what, look)]


def _guarded(what: str, look: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """What `look` finds; an error of a broken installation is a finding, too."""
    try:
        yield from look()
    except Exception as error:
        yield Finding(Level.PROBLEM, what, one_line(f"cannot be examined: {type(error).__name__}: {error}"))


def report(findings: Sequence[Finding]) -> str:
    """The findings as text, remedies below them."""
    width, home = max(len(finding.what) for finding in findings), str(Path.home())
    lines = []
    for finding in findings:
        lines.append(f"{MARKS[finding.level]:<8}{finding.what:<{width}}  {finding.says}")
        if finding.remedy:
            lines.append(f"{'':<8}{'':<{width}}  -> {finding.remedy}")
    problems = sum(finding.level is Level.PROBLEM for finding in findings)
    lines.append(f"{problems} problem{'' if problems == 1 else 's'}")
    text = "\n".join(lines) + "\n"
    return text if home == "/" else text.replace(home, "~")


if __name__ == "__main__":
    sys.exit(main())
