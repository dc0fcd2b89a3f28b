# SPDX-License-Identifier: Apache-2.0
"""Decode steps during which waiting for the device is an error."""

from benchmarks.assets import ROOT
from benchmarks.gpu_check.stages import Call, Outcome
from benchmarks.gpu_check.stages.suite import run_files


def run(call: Call) -> Outcome:
    return run_files(call, [ROOT / "tests" / "engine" / "test_no_sync.py"])
