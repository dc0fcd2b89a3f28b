# SPDX-License-Identifier: Apache-2.0
"""A server with the OpenAI interface that streams given answers, a chunk per step, and keeps what was asked."""

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Steps = Sequence[Sequence[str]]  # the tokens of each step of an answer

# What refuses a request, by a part of its prompt.
REFUSALS = {"too long": "the context holds 10 tokens", "no template": "you must provide a chat template"}


class _Fake(BaseHTTPRequestHandler):
    server: "FakeServer"

    def do_GET(self) -> None:
        self._json({"data": [{"id": "chat-model"}]} if self.path == "/v1/models" else {}, 200)

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.calls.append((self.path, asked))
        if self.path.startswith("/v1/"):
            self._complete(asked)
        elif self.path in self.server.other:
            self._json(self.server.other[self.path](asked), 200)
        else:
            self._json({"detail": "Not Found"}, 404)

    def _complete(self, asked: dict[str, Any]) -> None:
        is_chat = "messages" in asked
        said = asked["messages"][-1]["content"] if is_chat else asked["prompt"]
        if refusal := next((why for part, why in REFUSALS.items() if part in said), None):
            self._json({"error": {"message": refusal}}, 400)
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        if is_chat:
            self._event({"choices": [{"delta": {"role": "assistant", "content": ""}}]})
        for index, step in enumerate(self.server.answers[len(self.server.asked) - 1]):
            field = self.server.thoughts if index < self.server.num_thoughts else "content"
            self._event({"choices": [_chat_choice(step, field) if is_chat else _text_choice(step)]})
        if "fail" in said:
            self._event({"error": {"message": "the engine died"}})
        self._event({"choices": [{"delta": {}} if is_chat else {"text": ""}]})
        self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, content: dict[str, Any]) -> None:
        self.wfile.write(b"data: " + json.dumps(content).encode() + b"\n\n")

    def _json(self, content: dict[str, Any], status: int) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())

    def log_message(self, *args: Any) -> None:
        pass


class FakeServer(ThreadingHTTPServer):
    """`answers` in the order of requests; `other` has a function from body to response for further paths.

    The first `num_thoughts` steps of an answer in a chat are sent in the field `thoughts`, as by a reasoning parser.
    """

    def __init__(self, answers: Sequence[Steps]) -> None:
        super().__init__(("127.0.0.1", 0), _Fake)
        self.answers, self.calls = answers, list[tuple[str, dict[str, Any]]]()
        self.other: dict[str, Any] = {}
        self.num_thoughts, self.thoughts = 0, "reasoning"

    @property
    def asked(self) -> list[dict[str, Any]]:
        """The bodies of requests for completions."""
        return [asked for path, asked in self.calls if path.startswith("/v1/")]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def faking(answers: Sequence[Steps]) -> Iterator[FakeServer]:
    with FakeServer(answers) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def _chat_choice(step: Sequence[str], field: str) -> dict[str, Any]:
    logprobs = {"content": [{"token": token, "logprob": -0.1} for token in step]}
    return {"delta": {field: "".join(step)}, "logprobs": logprobs}


def _text_choice(step: Sequence[str]) -> dict[str, Any]:
    return {"text": "".join(step), "logprobs": {"tokens": list(step), "token_logprobs": [-0.1] * len(step)}}
