# SPDX-License-Identifier: Apache-2.0
"""Commands run one after the other, each in a process of its own, whose memory is free again afterwards.

A step that is finished is not started again: `pipeline.json` has its arguments, the target, and fingerprints of what it
read and wrote. Commands continue by themselves where an earlier start of them has ended.
"""

import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import current_thread, main_thread
from types import FrameType
from typing import Any

from redrafter_training.utils.command import SIGNALS
from redrafter_vllm.checkpoint.fingerprint import files_fingerprint
from redrafter_vllm.utils import strict_json
from redrafter_vllm.utils.atomic import write_text

STATE_FILE = "pipeline.json"
# A closed terminal ends commands as SIGTERM does, with a checkpoint.
FORWARDED = {number: number for number in SIGNALS} | {signal.SIGHUP: signal.SIGTERM}


@dataclass(frozen=True)
class Step:
    """One command.

    Args:
        products: patterns of the files in `folder` that the next step depends on; none for a step that is cheap to
            repeat.
        stdout: file for the command's standard output, which is shown as well.
    """

    name: str
    module: str
    arguments: tuple[str, ...]
    folder: Path
    products: tuple[str, ...] = ()
    stdout: Path | None = None

    def __str__(self) -> str:
        """The command as it can be typed."""
        return " ".join(["python -m", self.module, *map(_quoted, self.arguments)])

    def product(self) -> str | None:
        """Fingerprint of what the step has written; None if there is nothing."""
        found = sorted({path for pattern in self.products for path in self.folder.glob(pattern)})
        return files_fingerprint(found, self.folder) if found else None


class FinishedSteps:
    """Which steps are finished, stored in `folder`.

    Args:
        target: the target's fingerprint.
    """

    def __init__(self, folder: Path, target: Mapping[str, str]) -> None:
        self._path, self._target = folder / STATE_FILE, dict(target)
        try:
            found = strict_json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            found = {}
        self._stored: dict[str, Any] = found if isinstance(found, dict) else {}

    def has(self, step: Step, before: str | None) -> bool:
        """Whether `step` has been run on `before`, the product of the step before it, and its own is still there."""
        entry = self._entry(step, before)
        return entry is not None and self._stored.get(step.name) == entry

    def add(self, step: Step, before: str | None) -> None:
        """Stores that `step` has been run on `before`."""
        self._stored[step.name] = self._entry(step, before)
        write_text(self._path, strict_json.dumps(self._stored, indent=2) + "\n")

    def _entry(self, step: Step, before: str | None) -> dict[str, Any] | None:
        if (product := step.product()) is None:
            return None
        return {"arguments": list(step.arguments), "target": self._target, "read": before, "written": product}


def run_steps(steps: Sequence[Step], finished: FinishedSteps, *, done: int = 0) -> int:
    """Runs the steps that are not finished. Returns 0, or the exit code of the first one that fails.

    Args:
        done: steps before these, for the numbers that are shown.
    """
    before: str | None = None
    for number, step in enumerate(steps, done + 1):
        title = f"{number}/{done + len(steps)} {step.name}"
        if finished.has(step, before):
            print(f"{title}: finished before", flush=True)
        else:
            print(f"{title}: {step}", flush=True)
            if code := run_step(step):
                return code
            finished.add(step, before)
        before = step.product()
    return 0


def run_step(step: Step) -> int:
    """Runs one command in a new process, and returns its exit code; 128 + n after signal n, as a shell does."""
    output: list[str] = []
    with (
        subprocess.Popen(
            [sys.executable, "-m", step.module, *step.arguments],
            stdin=subprocess.DEVNULL,
            stdout=None if step.stdout is None else subprocess.PIPE,
            text=True,
            # Not in the terminal's group: Ctrl-C would reach the command twice, which ends it without a checkpoint.
            process_group=0,
        ) as process,
        _forwarded(process),
    ):
        for line in process.stdout or ():
            output.append(line)
            print(line, end="", flush=True)
        code = process.wait()
    if step.stdout is not None and code == 0:
        write_text(step.stdout, "".join(output))
    return code if code >= 0 else 128 - code


@contextmanager
def _forwarded(process: subprocess.Popen[str]) -> Iterator[None]:
    """Signals go on to `process`, whose end is awaited."""

    def forward(number: int, frame: FrameType | None) -> None:
        process.send_signal(FORWARDED[signal.Signals(number)])

    mine = current_thread() is main_thread()
    before = {number: signal.signal(number, forward) for number in FORWARDED} if mine else {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _quoted(argument: str) -> str:
    """As `shlex.quote`, but `~` stays what a shell makes the home folder of."""
    return f"~/{shlex.quote(argument[2:])}" if argument.startswith("~/") else shlex.quote(argument)
