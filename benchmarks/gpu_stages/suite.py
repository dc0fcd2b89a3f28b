# SPDX-License-Identifier: Apache-2.0
"""Test files of the repository as part of a stage, several at a time."""

import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from xml.etree import ElementTree

from benchmarks.demo.options import ROOT
from benchmarks.demo.processes import tail
from benchmarks.gpu_stages import Outcome

COUNTS = ("tests", "failures", "errors", "skipped")


def run_files(files: Sequence[Path], scratch: Path, *arguments: str, limit: float) -> Outcome:
    """Run each file's tests in a process of its own, each for at most `limit` seconds."""
    scratch.mkdir(parents=True, exist_ok=True)
    at_once = max(1, min(len(files), (os.cpu_count() or 2) // 2))
    with ThreadPoolExecutor(at_once) as pool:
        counts = dict(zip(files, pool.map(lambda file: _run_file(file, scratch, arguments, limit), files), strict=True))
    total = {name: sum(count[name] for count in counts.values()) for name in COUNTS}
    bad = [file for file, count in counts.items() if count["failures"] or count["errors"]]
    done = total["tests"] - total["skipped"] - total["failures"] - total["errors"]
    summary = f"{done} passed, {total['skipped']} skipped, {total['failures'] + total['errors']} failed"
    if bad:
        summary += "\n" + "\n".join(tail(_log(scratch, file), 12) for file in bad)
    figures = {"files": {file.name: count for file, count in counts.items()}}
    return Outcome(not bad and done > 0, summary, figures)


def _log(scratch: Path, file: Path) -> Path:
    return scratch / f"{file.stem}.log"


def _run_file(file: Path, scratch: Path, arguments: Sequence[str], limit: float) -> dict[str, int]:
    report = scratch / f"{file.stem}.xml"
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *arguments]
    with _log(scratch, file).open("wb") as log:
        try:
            subprocess.run([*command, str(file)], stdout=log, stderr=log, cwd=ROOT, timeout=limit, check=False)
        except subprocess.TimeoutExpired:
            log.write(f"\nstopped after {limit:.0f} s".encode())
    if not report.is_file():  # killed, or it could not even start
        return dict.fromkeys(COUNTS, 0) | {"errors": 1}
    suites = ElementTree.parse(report).getroot().iter("testsuite")
    attributes = [suite.attrib for suite in suites]
    return {name: sum(int(found[name]) for found in attributes) for name in COUNTS}
