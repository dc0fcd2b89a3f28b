# SPDX-License-Identifier: Apache-2.0
"""A decode step during which waiting for the device is an error."""

from benchmarks.demo.options import ROOT
from benchmarks.gpu_check.stages import Call, Outcome
from benchmarks.gpu_check.stages.suite import run_files


def run(call: Call) -> Outcome:
    return run_files(call, [ROOT / "tests" / "engine" / "test_no_sync.py"])
