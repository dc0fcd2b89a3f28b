# SPDX-License-Identifier: Apache-2.0
"""Runs a file of `examples/` from the root of the repository, with the commands of this environment, as a user does."""

import os
import subprocess
import sys
from pathlib import Path

from tests.paths import ROOT

EXAMPLES = ROOT / "examples"
BIN = Path(sys.executable).parent
ENVIRONMENT = {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}


def command(name: str, *arguments: object) -> list[str]:
    start = [sys.executable] if name.endswith(".py") else []
    return [*start, str(EXAMPLES / name), *map(str, arguments)]


def run(name: str, *arguments: object, status: int = 0, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs the file to its end and checks its exit status."""
    environment = {**os.environ, **ENVIRONMENT, **variables}
    done = subprocess.run(command(name, *arguments), cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == status, (done.stdout + done.stderr)[-3000:]
    return done
