# SPDX-License-Identifier: Apache-2.0
"""A `vllm serve` of one's own, for as long as a conversation lasts."""

import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from redrafter_vllm.chat.answers import ChatError
from redrafter_vllm.utils.local_server import HOST, free_port, is_healthy, vllm_program

END_WITHIN = 20.0  # seconds


def command(target: str, speculative: dict[str, Any] | None, port: int, options: Sequence[str]) -> list[str]:
    """The command line; without `speculative` nothing is drafted. `options` are further ones of `vllm serve`."""
    place = ["--host", HOST, "--port", str(port)]
    drafting = [] if speculative is None else ["--speculative-config", json.dumps(speculative)]
    return [vllm_program(), "serve", target, *drafting, *place, *options]


@contextmanager
def serving(
    target: str,
    speculative: dict[str, Any] | None,
    options: Sequence[str],
    waiting: Callable[[float], None],
    env: Mapping[str, str] | None = None,
) -> Iterator[str]:
    """Starts a server and yields its address; it has ended when the block is left.

    Args:
        target: Folder or hub id.
        speculative: vLLM's speculative config; None serves without drafts.
        options: Further ones of `vllm serve`.
        env: Variables that the server has beside those of this process.
        waiting: called several times a second with the seconds since the start.

    Raises ChatError where it does not start, with the last line of its log.
    """
    port = free_port()
    url = f"http://{HOST}:{port}"
    with tempfile.TemporaryFile() as log:
        try:
            process = subprocess.Popen(
                command(target, speculative, port, options),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **(env or {})},
            )
        except OSError as error:
            raise ChatError(f"vllm cannot be started ({error.strerror}): is it installed here?") from None
        started = time.monotonic()
        try:
            while not is_healthy(url):
                if process.poll() is not None:
                    raise ChatError(f"vllm serve ended with status {process.returncode}: {_last_line(log)}")
                waiting(time.monotonic() - started)
                time.sleep(0.2)
            yield url
        finally:
            _end(process)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Ends the server, which ends its engine; kills both, a session of their own, where it does not react."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(END_WITHIN)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _last_line(log: Any) -> str:
    log.seek(0)
    lines = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it said nothing"
