# SPDX-License-Identifier: Apache-2.0
"""Streamed answers of a server with the OpenAI interface, step by step."""

import json
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request

from redrafter_vllm.utils.local_server import without_proxy

DATA, END = b"data: ", b"[DONE]"
TIMEOUT = 600.0  # seconds without a byte

Message = Mapping[str, str]


class ChatError(RuntimeError):
    """The server cannot be reached or refuses a request; the message is one sentence."""


@dataclass(frozen=True)
class Piece:
    """What one step of the engine emitted: accepted drafts, and the target's token behind them."""

    texts: tuple[str, ...]  # of each token
    thought: str = ""  # what they begin with, where the server sets thoughts apart from the answer

    @property
    def drafted(self) -> str:
        """The accepted drafts."""
        return "".join(self.texts[:-1])

    @property
    def own(self) -> str:
        """The token that the target emitted itself."""
        return self.texts[-1]


@dataclass
class Figures:
    """Counts of an answer."""

    tokens: int = 0
    steps: int = 0
    seconds: float = 0.0  # from the first piece on
    text: str = ""  # of the answer, without thoughts that the server sets apart
    _first: int = field(default=0, repr=False)  # tokens of the first piece, which the prompt's pass emitted

    def add(self, piece: Piece, seconds: float) -> None:
        """Count a piece that came so many seconds after the first one."""
        self._first = self._first or len(piece.texts)
        self.tokens += len(piece.texts)
        self.steps += 1
        self.seconds = seconds
        self.text += "".join(piece.texts).removeprefix(piece.thought)

    @property
    def tokens_per_step(self) -> float | None:
        """Emitted tokens by step of decoding; None before the first."""
        return (self.tokens - self._first) / (self.steps - 1) if self.steps > 1 else None

    @property
    def tokens_per_second(self) -> float | None:
        """Speed of decoding, without the prompt's pass."""
        return (self.tokens - self._first) / self.seconds if self.steps > 1 and self.seconds > 0 else None


class Server:
    """A server at `url`, for instance http://localhost:8000.

    Raises ChatError where it does not answer, or serves no model.
    """

    def __init__(self, url: str, api_key: str | None = None) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._open = without_proxy().open
        with self.request("/v1/models") as response:
            served = json.load(response).get("data") or []
        if not served:
            raise ChatError(f"{self.url} serves no model")
        self.model = str(served[0]["id"])

    def answer(self, messages: Sequence[Message], **sampling: Any) -> Generator[Piece, None, None]:
        """The pieces of the answer to a conversation. Closing the iterator aborts the request."""
        body = {"messages": list(messages), "logprobs": True, "top_logprobs": 0}
        return self._stream("/v1/chat/completions", body | sampling)

    def continued(self, text: str, **sampling: Any) -> Generator[Piece, None, None]:
        """The pieces that follow a text, for targets without a chat template."""
        return self._stream("/v1/completions", {"prompt": text, "logprobs": 0} | sampling)

    def _stream(self, path: str, body: Mapping[str, Any]) -> Generator[Piece, None, None]:
        with self.request(path, {"model": self.model, "stream": True, **body}) as response:
            for line in response:
                if not line.startswith(DATA) or line.startswith(DATA + END):
                    continue
                event = json.loads(line[len(DATA) :])
                if "error" in event:
                    raise ChatError(f"the server ended the answer: {event['error'].get('message', event['error'])}")
                for choice in event.get("choices") or []:
                    if piece := _piece(choice):
                        yield piece

    def request(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The open response to a request, a POST if it has a body.

        Raises ChatError where the server does not answer or refuses.
        """
        data = None if body is None else json.dumps(body).encode()
        try:
            return self._open(Request(self.url + path, data, self._headers), timeout=TIMEOUT)
        except HTTPError as error:
            raise ChatError(f"{self.url} refuses {path} with status {error.code}: {_reason(error)}") from None
        except (URLError, HTTPException, OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise ChatError(f"{self.url} does not answer ({reason}): is vllm serve running there?") from None


def _piece(choice: Mapping[str, Any]) -> Piece | None:
    """The piece in a choice of a chunk; None for the first chunk, which has the role alone, and the last."""
    logprobs, thought = choice.get("logprobs") or {}, ""
    if "delta" in choice:
        delta = choice["delta"] or {}
        # With a reasoning parser; servers name the field in one way or the other.
        thought = delta.get("reasoning") or delta.get("reasoning_content") or ""
        text = thought + (delta.get("content") or "")
        tokens = [str(entry["token"]) for entry in logprobs.get("content") or []]
    else:
        text, tokens = choice.get("text") or "", list(map(str, logprobs.get("tokens") or []))
    return Piece(divided(text, tokens), thought) if text or tokens else None


def divided(text: str, tokens: Sequence[str]) -> tuple[str, ...]:
    """What each token adds to the text, as far as it is known."""
    if "".join(tokens) == text or len(tokens) < 2:
        return tuple(tokens) if len(tokens) > 1 else (text,)
    # Where characters of several tokens were held back, the tokens' texts are not the piece's.
    own = tokens[-1] if text.endswith(tokens[-1]) else ""
    return (text[: len(text) - len(own)], *[""] * (len(tokens) - 2), own)


def _reason(error: HTTPError) -> str:
    try:
        found = json.load(error)
        return str((found.get("error") or found).get("message", found))
    except (ValueError, AttributeError):
        return str(error.reason)
