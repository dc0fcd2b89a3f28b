# SPDX-License-Identifier: Apache-2.0
"""`redrafter completion SHELL`: prints a script that completes commands and their options.

For bash: `source <(redrafter completion bash)`, for good in `~/.bashrc`.
"""

import argparse
import sys
from collections.abc import Sequence

import shtab

from redrafter_vllm.cli.commands import COMMANDS
from redrafter_vllm.utils.program import COMMAND, program

SHELLS = ("bash", "zsh", "tcsh")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program("redrafter_vllm.cli.completion"),
        description="Print a script that completes the commands and options of redrafter in a shell. "
        "For bash: source <(redrafter completion bash)",
    )
    parser.add_argument("shell", choices=SHELLS)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    arguments = build_parser().parse_args(argv)
    print(shtab.complete(whole_parser(), shell=arguments.shell))
    return 0


def whole_parser() -> argparse.ArgumentParser:
    """One parser with all installed commands, to read their options from."""
    parser = argparse.ArgumentParser(prog=COMMAND)
    commands = parser.add_subparsers(dest="command")
    for command in COMMANDS.values():
        if command.is_installed:
            own = command.load().build_parser()
            commands.add_parser(
                command.name, help=command.summary, parents=[own], add_help=False, conflict_handler="resolve"
            )
    return parser


if __name__ == "__main__":
    sys.exit(main())
