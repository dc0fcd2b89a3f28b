# SPDX-License-Identifier: Apache-2.0
"""An HTTP server on this machine: its program, where it may listen, whether it is ready."""

import socket
import sys
from pathlib import Path
from urllib.error import URLError
from urllib.request import OpenerDirector, ProxyHandler, build_opener

HOST = "127.0.0.1"


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def is_free(port: int) -> bool:
    """Whether a server can listen on `port` now."""
    with socket.socket() as probe:
        # As servers do: a port whose last connections are only fading out is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def vllm_program() -> str:
    """The program `vllm` beside this Python, else that of the PATH."""
    beside = Path(sys.executable).with_name("vllm")
    return str(beside) if beside.exists() else "vllm"


def without_proxy() -> OpenerDirector:
    """Opens URLs directly: a proxy is in the way of a server on this machine."""
    return build_opener(ProxyHandler({}))


def is_healthy(url: str) -> bool:
    """Whether the server at `url` answers /health with status 200 within two seconds."""
    try:
        with without_proxy().open(f"{url}/health", timeout=2.0) as response:
            return bool(response.status == 200)
    except (URLError, OSError):
        return False
