# SPDX-License-Identifier: Apache-2.0
"""Child processes that end with the command that started them."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.console import Console

from redrafter_vllm.utils.messages import one_line

GRACE_SECONDS = 20.0
NOTE_EVERY = 30.0

# No benchmark needs the network: engines must not try it, nor send statistics.
QUIET = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "PYTHONUNBUFFERED": "1"}

# What an error says: `SomeError: …`, argparse's `error: …`, pydantic's `Value error, …`.
_REASON = re.compile(r"((?:\b[\w.]*(?:Error|Exception|Exit|error): |\bValue error, ).*?)(?: \[type=.*)?$")
HINT = "Engine core initialization failed"  # in vLLM's last error, which refers to an earlier one


class ChildError(RuntimeError):
    """A child process failed or was not ready in time; the message holds the end of its log."""


@contextmanager
def running(
    command: Sequence[str], log: Path, env: Mapping[str, str], folder: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run `command` in `folder`, its output in `log`; when the block is left, it and all its children have ended."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        child = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **QUIET, **env},
            cwd=folder,
            start_new_session=True,
        )
        try:
            yield child
        finally:
            stop(child)


def stop(child: subprocess.Popen[bytes]) -> None:
    """Terminate the child, wait for `GRACE_SECONDS`, then kill its whole process group."""
    if child.poll() is None:
        with suppress(ProcessLookupError):
            child.terminate()
        with suppress(subprocess.TimeoutExpired):
            child.wait(GRACE_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def run_to_end(
    command: Sequence[str],
    log: Path,
    env: Mapping[str, str],
    what: str,
    console: Console,
    limit: float = 1800.0,
    folder: Path | None = None,
) -> None:
    """Run a child to its end, with a spinner. Raises `ChildError` if it fails or takes more than `limit` seconds."""
    with running(command, log, env, folder) as child:
        for _ in waiting(what, console, limit, log):
            if child.poll() is not None:
                break
        if child.returncode != 0:
            raise ChildError(f"{what} failed with status {child.returncode}.\n{tail(log)}")


def waiting(what: str, console: Console, limit: float, log: Path) -> Iterator[None]:
    """Yield four times a second, with a spinner that shows the seconds. Raises `ChildError` after `limit` seconds."""
    started = noted = time.monotonic()
    with console.status(what) as status:
        while (now := time.monotonic()) - started < limit:
            yield
            status.update(f"{what} … {now - started:.0f} s")
            if not console.is_terminal and now - noted > NOTE_EVERY:
                console.print(f"  {what} … {now - started:.0f} s")
                noted = now
            time.sleep(0.25)
    raise ChildError(f"{what} took more than {limit:.0f} s.\n{tail(log)}")


def summary(error: ChildError) -> str:
    """The error in one line: what failed, the reason that its log gives, and where the log is."""
    what, *logged = str(error).splitlines()
    if not logged:
        return what
    place, *lines = logged
    found = [match for line in lines if HINT not in line and (match := _REASON.search(line)) is not None]
    last = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
    reason = found[-1].group(1) if found else last
    return f"{what.rstrip('.')}: {one_line(reason.strip())} ({place.removeprefix('The end of ').rstrip(':')})"


def tail(log: Path, lines: int = 25) -> str:
    """The last `lines` of a log, after its name."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    end = "\n".join(text.replace("\r", "\n").splitlines()[-lines:])
    return f"The end of {log}:\n{end}"
