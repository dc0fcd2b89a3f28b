# SPDX-License-Identifier: Apache-2.0
"""`redrafter COMMAND`: finds the command and hands the other arguments to it.

Only the module of the chosen command is imported, so that `redrafter --help` answers at once.
"""

import sys
from collections.abc import Sequence

from redrafter_vllm import __version__
from redrafter_vllm.cli.commands import COMMANDS, GROUPS
from redrafter_vllm.utils.install import install_training
from redrafter_vllm.utils.messages import did_you_mean, shown
from redrafter_vllm.utils.program import COMMAND

USAGE_ERROR = 2
HEADER = f"""\
usage: {COMMAND} COMMAND [ARGUMENT ...], or {COMMAND} COMMAND --help

Speculative decoding for vLLM with a Recurrent Drafter. Serving is vLLM's own
command: vllm serve MODEL --speculative-model redrafter

"""


def main(argv: Sequence[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv:
        print(help_text(), end="", file=sys.stderr)
        return USAGE_ERROR
    name, *arguments = argv
    if name in ("-h", "--help"):
        print(help_text(), end="")
        return 0
    if name == "--version":
        print(f"{COMMAND} {__version__}")
        return 0
    if name not in COMMANDS:
        print(
            f"{COMMAND}: {shown(name)} is no command{did_you_mean(name, COMMANDS)}; {COMMAND} --help lists them",
            file=sys.stderr,
        )
        return USAGE_ERROR
    command = COMMANDS[name]
    if not command.is_installed:
        print(
            f"{COMMAND} {name} is part of the training package, which is not installed: {install_training()}",
            file=sys.stderr,
        )
        return 1
    sys.argv = [f"{COMMAND} {name}", *arguments]  # what the command's own help shows
    code: int = command.load().main(arguments)
    return code


def help_text() -> str:
    """All commands by group; fits a screen of 80 columns and 24 lines."""
    width = max(map(len, COMMANDS))
    lines = [HEADER]
    for title, group in GROUPS.items():
        lines.append(f"{title}:\n")
        lines += [f"  {command.name:<{width}}  {command.summary}\n" for command in group]
    return "".join(lines)
