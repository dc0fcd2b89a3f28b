# SPDX-License-Identifier: Apache-2.0
"""The draft trees of a server that reports them: one in development mode, with our extension of its workers."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from redrafter_vllm.chat.answers import ChatError, Server
from redrafter_vllm.watch.recording import VerifiedTree

EXTENSION = "redrafter_vllm.integration.worker.tree_recorder.TreeRecording"
OPTIONS = ("--worker-extension-cls", EXTENSION)
ENVIRONMENT = {"VLLM_SERVER_DEV_MODE": "1"}  # gives a server /collective_rpc; not for servers that others reach
NOT_REPORTED = (
    "This server does not report its trees. It does if it is started with\n\n"
    f"VLLM_SERVER_DEV_MODE=1 vllm serve … {OPTIONS[0]} {EXTENSION}"
)
NOT_MATCHED = "The trees that this server reports do not fit the tokens that it sent."


def start_recording(server: Server) -> bool:
    """Whether the server records its trees from now on."""
    try:
        _call(server, "start_tree_recording")
    except ChatError:
        return False
    return True


def stop_recording(server: Server, request_id: str) -> list[VerifiedTree]:
    """The trees of a request in the order of its steps; `request_id` is what the client called it."""
    every: list[Mapping[str, Any]] = next((found for found in _call(server, "stop_tree_recording") if found), [])
    own = [tree for tree in every if request_id in tree["request"]]
    return as_texts(own, _texts(server, own))


def as_texts(trees: Sequence[Mapping[str, Any]], texts: Mapping[int, str]) -> list[VerifiedTree]:
    """Recorded trees with the texts of their tokens."""
    return [
        VerifiedTree(
            nodes=tuple(texts[token] for token in tree["tokens"]),
            parents=tuple(tree["parents"]),
            path=tuple(tree["path"]),
            num_emitted=tree["emitted"],
        )
        for tree in trees
    ]


def _texts(server: Server, trees: Sequence[Mapping[str, Any]]) -> dict[int, str]:
    found: dict[int, str] = {}
    for token in sorted({token for tree in trees for token in tree["tokens"]}):
        with server.request("/detokenize", {"model": server.model, "tokens": [token]}) as response:
            found[token] = str(json.load(response)["prompt"])
    return found


def _call(server: Server, method: str) -> list[Any]:
    """What each worker returns."""
    with server.request("/collective_rpc", {"method": method}) as response:
        return list(json.load(response)["results"])
