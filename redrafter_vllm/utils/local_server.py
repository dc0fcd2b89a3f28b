# SPDX-License-Identifier: Apache-2.0
"""An HTTP server on this machine: where it may listen, and whether it is ready."""

import socket
from urllib.error import URLError
from urllib.request import OpenerDirector, ProxyHandler, build_opener

HOST = "127.0.0.1"


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


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
