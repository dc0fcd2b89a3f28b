# SPDX-License-Identifier: Apache-2.0
"""The name that a command shows in its own help."""

import sys

COMMAND = "redrafter"


def program(module: str) -> str:
    """`redrafter NAME` where the command was started so, else `python -m MODULE`."""
    called = sys.argv[0] if sys.argv else ""
    return called if called.startswith(f"{COMMAND} ") else f"python -m {module}"
