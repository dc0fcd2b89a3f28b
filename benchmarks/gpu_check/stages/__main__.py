# SPDX-License-Identifier: Apache-2.0
"""The process of one stage: `python -m benchmarks.gpu_check.stages STAGE DEVICE SECONDS FOLDER`."""

import importlib
import sys
import time
from dataclasses import asdict
from pathlib import Path

from benchmarks.gpu_check.stages import Call, outcome_file
from benchmarks.record import store


def main() -> None:
    stage, device, seconds, folder = sys.argv[1:]
    scratch = Path(folder) / stage
    call = Call(device, scratch, time.monotonic() + float(seconds))
    scratch.mkdir(parents=True, exist_ok=True)
    outcome = importlib.import_module(f"benchmarks.gpu_check.stages.{stage}").run(call)
    store(outcome_file(scratch), asdict(outcome))


if __name__ == "__main__":
    main()
