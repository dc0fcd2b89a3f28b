# SPDX-License-Identifier: Apache-2.0
"""Every kernel against its reference, and the attention backends, on the device: the repository's own tests."""

from pathlib import Path

from benchmarks.demo.options import ROOT
from benchmarks.gpu_stages import Outcome
from benchmarks.gpu_stages.suite import run_files

LIMIT = 170.0


def run(device: str, scratch: Path) -> Outcome:
    # On a CPU, where the interpreter runs them for minutes, one file shows that the stage works.
    pattern = "test_kernel_*.py" if device == "cuda" else "test_kernel_tree_verify.py"
    files = sorted((ROOT / "tests" / "ops").glob(pattern))
    if device == "cuda":
        files += sorted((ROOT / "tests" / "attention").glob("test_*.py"))
    return run_files(files, scratch, limit=LIMIT)
