# SPDX-License-Identifier: Apache-2.0
"""Another drafter for a running server: python examples/hot_swap.py DRAFTER [URL]

DRAFTER is a directory on the server's machine or a hub id; it must have the sizes of the drafter that is served.
Requests in flight continue, and their text does not change: a drafter decides how fast a text comes, not what it says.

The server must have been started with VLLM_SERVER_DEV_MODE=1. That gives every client control of the engine: only where
no stranger can reach it.
"""

import json
import sys
from urllib.error import HTTPError
from urllib.request import Request, urlopen


def main(drafter: str, url: str = "http://localhost:8000") -> None:
    body = json.dumps({"method": "reload_drafter", "args": [drafter]}).encode()
    request = Request(f"{url}/collective_rpc", body, {"Content-Type": "application/json"})
    try:
        with urlopen(request, timeout=300) as answer:
            answer.read()
    except HTTPError as refused:
        if refused.code == 404:
            sys.exit(f"{url} has no /collective_rpc: start the server with VLLM_SERVER_DEV_MODE=1.")
        sys.exit(f"{url} keeps its drafter: {refused.read().decode()}")
    print(f"{url} drafts with {drafter} from now on")


if __name__ == "__main__":
    main(*sys.argv[1:])
