# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks.gpu_stages STAGE DEVICE OUT.json`: the process that `benchmarks.gpu_check` starts."""

import importlib
import json
import sys
from dataclasses import asdict
from pathlib import Path


def main() -> None:
    stage, device, out = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    outcome = importlib.import_module(f"benchmarks.gpu_stages.{stage}").run(device, out.parent / stage)
    out.write_text(json.dumps(asdict(outcome)))


if __name__ == "__main__":
    main()
