# SPDX-License-Identifier: Apache-2.0
"""Test files of the repository, run by a stage several at a time."""

import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from benchmarks.assets import ROOT
from benchmarks.gpu_check.stages import Call, Outcome
from redrafter_vllm.bench.child import tail

COUNTS = ("tests", "failures", "errors", "skipped")
RESERVED_SECONDS = 5.0  # before the stage's deadline, for its summary


def run_files(call: Call, files: Sequence[Path], *arguments: str) -> Outcome:
    """Run the tests of each file in a separate process, which is stopped shortly before the stage's deadline."""
    call.scratch.mkdir(parents=True, exist_ok=True)
    counts: dict[str, Any] = {}
    # Most of their time is compilation on one core each.
    with ThreadPoolExecutor(max(1, min(len(files), (os.cpu_count() or 2) - 1))) as pool:
        running = {pool.submit(_run_file, call, file, arguments): file for file in files}
        for done in as_completed(running):
            counts[running[done].name] = done.result()
            call.keep({"files": counts})
    total = {name: sum(count[name] for count in counts.values()) for name in COUNTS}
    bad = [file for file in files if counts[file.name]["failures"] or counts[file.name]["errors"]]
    passed = total["tests"] - total["skipped"] - total["failures"] - total["errors"]
    summary = f"{passed} passed, {total['skipped']} skipped, {total['failures'] + total['errors']} failed"
    if bad:
        summary += "\n" + "\n".join(tail(_log(call.scratch, file), 12) for file in bad)
    return Outcome(not bad and passed > 0, summary, {"files": counts})


def _log(scratch: Path, file: Path) -> Path:
    return scratch / f"{file.stem}.log"


def _run_file(call: Call, file: Path, arguments: Sequence[str]) -> dict[str, int]:
    report, limit = call.scratch / f"{file.stem}.xml", max(1.0, call.left - RESERVED_SECONDS)
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *arguments]
    with _log(call.scratch, file).open("wb") as log:
        try:
            subprocess.run([*command, str(file)], stdout=log, stderr=log, cwd=ROOT, timeout=limit, check=False)
        except subprocess.TimeoutExpired:
            log.write(f"\nstopped after {limit:.0f} s".encode())
    if not report.is_file():  # killed, or it could not even start
        return dict.fromkeys(COUNTS, 0) | {"errors": 1}
    suites = ElementTree.parse(report).getroot().iter("testsuite")
    attributes = [suite.attrib for suite in suites]
    return {name: sum(int(found[name]) for found in attributes) for name in COUNTS}
