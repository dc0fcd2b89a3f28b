# SPDX-License-Identifier: Apache-2.0
"""All kernels against their references, and the attention backends, on the device: the repository's tests."""

from benchmarks.assets import ROOT
from benchmarks.gpu_check.stages import Call, Outcome
from benchmarks.gpu_check.stages.suite import run_files


def run(call: Call) -> Outcome:
    # On a CPU the interpreter takes minutes for all files; one file shows that the stage works.
    pattern = "test_kernel_*.py" if call.device == "cuda" else "test_kernel_tree_verify.py"
    files = sorted((ROOT / "tests" / "ops").glob(pattern))
    if call.device == "cuda":
        files += sorted((ROOT / "tests" / "integration" / "attention").glob("test_*.py"))
    return run_files(call, files)
