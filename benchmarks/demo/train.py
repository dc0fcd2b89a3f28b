# SPDX-License-Identifier: Apache-2.0
"""The demonstration's target and drafter: given, committed or trained."""

import os
import subprocess
import sys
from pathlib import Path

from rich.console import Console

from benchmarks.assets import ASSET, ROOT
from benchmarks.demo.options import DemoOptions


def obtain_target(options: DemoOptions, console: Console) -> Path:
    """The given target, the committed one, or one that is trained now and kept for later demonstrations."""
    if options.target is not None:
        return options.target
    if (ASSET / "model.safetensors").is_file():
        console.print(f"target: {ASSET.relative_to(ROOT)}, committed with its recipe in training.json")
        return ASSET
    made = options.out / "target"
    if not (made / "model.safetensors").is_file():
        console.print("no target is committed: training a small one on the standard library's sources (3 minutes)")
        _python("redrafter_training.tiny_target.train", "--recipe", "short", "--out", str(made))
    return made


def obtain_drafter(target: Path, options: DemoOptions, console: Console) -> Path:
    """The given drafter, or one that is trained now for `target`."""
    if options.drafter is not None:
        return options.drafter
    made = options.out / "drafter"
    console.print(f"training a drafter for it ({options.recipe} recipe)")
    places = ("--target", str(target), "--out", str(made))
    # A drafter of an earlier demonstration may have another recipe or target.
    overwriting = ("--resume", "false", "--overwrite")
    _python(
        "redrafter_training",
        "--data",
        "stdlib",
        "--recipe",
        options.recipe,
        "--evaluate",
        "false",
        *overwriting,
        *places,
    )
    return made


def _python(module: str, *arguments: str) -> None:
    # Threads that wait actively make training several times slower where other work shares the cores.
    env = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}
    # In this process group and on this terminal, so that progress bars show and Ctrl-C reaches it.
    subprocess.run([sys.executable, "-m", module, *arguments], cwd=ROOT, env=env, check=True)
