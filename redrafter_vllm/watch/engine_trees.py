# SPDX-License-Identifier: Apache-2.0
"""The draft trees of a server that reports them: one in development mode, with our extension of its workers."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Self

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


class TreeReader:
    """The trees of a request that a server records, in the order of its steps, as far as they have been read."""

    def __init__(self, server: Server, request_id: str) -> None:
        """`request_id` is what the client calls the request."""
        self.trees: list[VerifiedTree] = []
        self._server, self._request_id = server, request_id
        self._texts: dict[int, str] = {}  # of tokens

    @classmethod
    def start(cls, server: Server, request_id: str) -> Self | None:
        """Lets the server record its trees; None if it does not."""
        try:
            _call(server, "start_tree_recording")
        except ChatError:
            return None
        return cls(server, request_id)

    def read(self) -> None:
        """Reads what has been recorded since the last time; recording goes on."""
        self._add(_call(self._server, "read_tree_recording"))

    def stop(self) -> None:
        """Ends the recording, and reads the rest."""
        self._add(_call(self._server, "stop_tree_recording"))

    def _add(self, found: Sequence[Sequence[Mapping[str, Any]] | None]) -> None:
        """What each worker has returned: the same, or nothing."""
        own = [tree for tree in next(filter(None, found), ()) if self._request_id in tree["request"]]
        for token in sorted({token for tree in own for token in tree["tokens"]} - self._texts.keys()):
            self._texts[token] = _text(self._server, token)
        self.trees += as_texts(own, self._texts)


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


def _text(server: Server, token: int) -> str:
    with server.request("/detokenize", {"model": server.model, "tokens": [token]}) as response:
        return str(json.load(response)["prompt"])


def _call(server: Server, method: str) -> list[Any]:
    """What each worker returns."""
    with server.request("/collective_rpc", {"method": method}) as response:
        return list(json.load(response)["results"])
