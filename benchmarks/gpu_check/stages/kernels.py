# SPDX-License-Identifier: Apache-2.0
"""Every kernel against its reference, and the attention backends, on the device: the repository's own tests."""

from benchmarks.demo.options import ROOT
from benchmarks.gpu_check.stages import Call, Outcome
from benchmarks.gpu_check.stages.suite import run_files


def run(call: Call) -> Outcome:
    # On a CPU, where the interpreter runs them for minutes, one file shows that the stage works.
    pattern = "test_kernel_*.py" if call.device == "cuda" else "test_kernel_tree_verify.py"
    files = sorted((ROOT / "tests" / "ops").glob(pattern))
    if call.device == "cuda":
        files += sorted((ROOT / "tests" / "attention").glob("test_*.py"))
    return run_files(call, files)
