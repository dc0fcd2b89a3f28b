# SPDX-License-Identifier: Apache-2.0
"""A decode step during which waiting for the device is an error."""

from pathlib import Path

from benchmarks.demo.options import ROOT
from benchmarks.gpu_stages import Outcome
from benchmarks.gpu_stages.suite import run_files

LIMIT = 90.0


def run(device: str, scratch: Path) -> Outcome:
    return run_files([ROOT / "tests" / "engine" / "test_no_sync.py"], scratch, limit=LIMIT)
