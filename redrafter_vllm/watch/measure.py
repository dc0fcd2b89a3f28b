# SPDX-License-Identifier: Apache-2.0
"""Streaming an answer into a recording, while something else draws it."""

import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from redrafter_vllm.chat.answers import ChatError, Message, Piece, Server
from redrafter_vllm.watch import engine_trees
from redrafter_vllm.watch.recording import Recording, Step, steps_so_far, with_trees

WARM_UP_TOKENS = 8
SLOWED = ", slowed by --live"  # behind the title: the figures are below what it can do
DRAFTS_OFF = {"redrafter": {"enabled": False}}


@dataclass(frozen=True)
class Question:
    """What both sides are asked."""

    prompt: str
    is_text: bool  # to be continued, not a turn of a chat
    begin: Sequence[Message]  # messages before it
    sampling: Mapping[str, Any]

    def ask(self, server: Server, **further: Any) -> Iterator[Piece]:
        """The pieces of the answer; `further` are fields of the request."""
        fields = {**self.sampling, **further}
        if self.is_text:
            return server.continued(self.prompt, **fields)
        return server.answer([*self.begin, {"role": "user", "content": self.prompt}], **fields)


def measure_plain(server: Server, question: Question, recording: Recording, watching: Callable[[], None]) -> None:
    """Record an answer without drafts; each of its tokens is a step of its own. See `measure`."""
    _stream(server, question, recording, watching, DRAFTS_OFF, one_by_one=True)


def measure(
    server: Server, question: Question, recording: Recording, watching: Callable[[], None], *, live: bool = False
) -> None:
    """Record an answer with drafts, and the trees if the server reports them.

    Args:
        server: Is asked for a few tokens before, so that costs of the first request are not counted.
        question: Prompt and sampling.
        recording: Gets the steps as they arrive, and again with their trees at the end.
        watching: Called several times a second meanwhile.
        live: Trees are read before each of these calls, which takes the server some time, and not only at the end.

    Raises ChatError where the server refuses or ends the answer.
    """
    name = uuid.uuid4().hex
    reader = engine_trees.TreeReader.start(server, name)
    if live and reader is not None:
        recording.title += SLOWED
        watching = partial(_read_and_watch, reader, recording, watching)
    try:
        _stream(server, question, recording, watching, {"request_id": name}, one_by_one=False)
    finally:
        if reader is not None:
            reader.stop()
    joined = None if reader is None else with_trees(recording.steps, reader.trees)
    if joined is not None:
        recording.steps = joined
    recording.joined = []
    recording.no_trees = "" if joined else engine_trees.NOT_MATCHED if reader else engine_trees.NOT_REPORTED


def _read_and_watch(reader: engine_trees.TreeReader, recording: Recording, watching: Callable[[], None]) -> None:
    reader.read()
    recording.joined = steps_so_far(recording.steps, reader.trees)
    watching()


def _stream(
    server: Server,
    question: Question,
    recording: Recording,
    watching: Callable[[], None],
    further: Mapping[str, Any],
    *,
    one_by_one: bool,
) -> None:
    for _ in question.ask(server, **{**further, "max_tokens": WARM_UP_TOKENS, "request_id": uuid.uuid4().hex}):
        pass
    failure: list[BaseException] = []

    def receive() -> None:
        try:
            _receive(question.ask(server, **further), recording, one_by_one=one_by_one)
        except BaseException as error:  # raised again by the caller's thread
            failure.append(error)

    receiving = threading.Thread(target=receive, daemon=True)
    receiving.start()
    while receiving.is_alive():
        watching()
        receiving.join(0.25)
    if failure:
        raise failure[0]
    if len(recording.tokens) < 2:
        raise ChatError("the answer ended before its second token: there is nothing to compare, try another prompt")
    recording.ended = True
    watching()


def _receive(pieces: Iterator[Piece], recording: Recording, *, one_by_one: bool) -> None:
    first: float | None = None
    for piece in pieces:
        now = time.perf_counter()
        first = now if first is None else first
        # Without drafts a piece of several tokens is several steps that arrived together.
        emitted = [(text,) for text in piece.texts] if one_by_one else [piece.texts]
        recording.steps += [Step(now - first, texts) for texts in emitted]
