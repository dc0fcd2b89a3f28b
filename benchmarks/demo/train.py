# SPDX-License-Identifier: Apache-2.0
"""A drafter that is trained for the demonstration."""

import os
import subprocess
import sys
from pathlib import Path

from rich.console import Console

from benchmarks.assets import ROOT


def train_drafter(target: Path, recipe: str, out: Path, console: Console) -> Path:
    """Train a drafter for `target` on the standard library's sources; the folder `out`, with the drafter.

    Raises:
        CalledProcessError: The training failed.
    """
    console.print(f"training a drafter ({recipe} recipe) for {target}")
    command = [sys.executable, "-m", "redrafter_training", "--target", str(target), "--out", str(out)]
    command += ["--data", "stdlib", "--recipe", recipe, "--evaluate", "false"]
    # A drafter of an earlier demonstration may have another recipe.
    command += ["--resume", "false", "--overwrite"]
    # Threads that wait actively make training several times slower where other work shares the cores.
    env = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}
    # In this process group and on this terminal, so that progress bars show and Ctrl-C reaches it.
    subprocess.run(command, cwd=ROOT, env=env, check=True)
    return out
