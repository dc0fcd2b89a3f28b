# SPDX-License-Identifier: Apache-2.0
"""The tools that check the files of `deploy/`, and a skip where one is not installed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.paths import ROOT

DEPLOY = ROOT / "deploy"
DASHBOARD = ROOT / "docs" / "reference" / "grafana" / "redrafter.json"
PLACES = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])


def tool(name: str, *arguments: object, status: int = 0, **variables: str) -> str:
    """What the tool prints; its exit status is checked. Skips where it is not installed."""
    program = shutil.which(name, path=PLACES)
    if program is None:
        pytest.skip(f"{name} is not installed: `make setup`, or for promtool Debian's package prometheus, brings it")
    command = [program, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **variables}, capture_output=True, text=True)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr
