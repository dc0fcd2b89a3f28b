# SPDX-License-Identifier: Apache-2.0
"""Streaming-input sessions on an in-process engine, step by step: the messages are those that `AsyncLLM` sends."""

import random
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from typing import Any, NamedTuple

from tests.engine.generation import params
from tests.models import VOCAB


class Part(NamedTuple):
    """One message of a session: what it adds to the text, and the sampling parameters of its answer."""

    prompt: Sequence[int]
    sampling: Any


Sessions = Mapping[str, Sequence[Part]]


class Session:
    """The client of one session: sends each part when the previous one is answered, or, with `ahead`, all at once."""

    def __init__(self, llm: Any, name: str, parts: Sequence[Part], *, ahead: bool = False, **options: Any) -> None:
        self.engine, self.name, self.options = llm.llm_engine, name, options
        self.to_send, self.ahead, self.closed = list(parts), ahead, False
        self.answers: list[list[int]] = [[]]  # of the parts; the last one is not complete
        self.finish_reasons: list[str] = []
        self.num_sent = 0
        self._last = self._request(name, Part([0], params()), resumable=False)  # the message that closes a session
        self.engine.input_processor.assign_request_id(self._last)

    @property
    def idle(self) -> bool:
        """Whether every part that was sent is answered."""
        return len(self.finish_reasons) == self.num_sent

    @property
    def done(self) -> bool:
        """Whether the session is closed and every part is answered."""
        return self.closed and self.idle

    def go_on(self) -> None:
        """Send the parts that can be sent now."""
        while self.to_send and (self.ahead or self.idle):
            request = self._request(self._last.request_id, self.to_send.pop(0), resumable=True)
            request.external_req_id = self.name
            self._add(request)
            self.num_sent += 1
        if not self.to_send and not self.closed and (self.ahead or self.idle):
            self.closed = True
            self._add(self._last)

    def take(self, output: Any) -> None:
        (completion,) = output.outputs
        self.answers[-1] += completion.token_ids
        if completion.finish_reason is not None:
            self.finish_reasons.append(completion.finish_reason)
            self.answers.append([])

    def _request(self, request_id: str, part: Part, *, resumable: bool) -> Any:
        from vllm.sampling_params import RequestOutputKind

        sampling = part.sampling.clone()
        sampling.output_kind = RequestOutputKind.DELTA
        return self.engine.input_processor.process_inputs(
            request_id,
            {"prompt_token_ids": list(part.prompt)},
            sampling,
            supported_tasks=self.engine.get_supported_tasks(),
            resumable=resumable,
            **self.options,
        )

    def _add(self, request: Any) -> None:
        # Both sides extend the prompt's list; with separate processes each would have its own.
        theirs = copy(request)
        theirs.prompt_token_ids = list(request.prompt_token_ids)
        self.engine.output_processor.add_request(request, None, None, 0)
        self.engine.engine_core.add_request(theirs)


def random_sessions(seed: int, count: int = 5, parts: int = 4, longest: int = 19, **options: Any) -> Sessions:
    """Parts of one token and of many, answers of one token and of many, alternately greedy and seeded."""
    rng = random.Random(seed)

    def part(index: int) -> Part:
        defaults = {
            "temperature": 0.8 * (index % 2),
            "seed": index,
            "max_tokens": rng.choice([1, 2, 3, 7, longest]),
            "ignore_eos": True,
        }
        prompt = [rng.randrange(3, VOCAB) for _ in range(rng.choice([1, 1, 2, 17, 40]))]
        return Part(prompt, params(**{**defaults, **options}))

    return {f"session {i}": [part(i + turn) for turn in range(parts)] for i in range(count)}


def run_sessions(
    llm: Any, sessions: Sessions, *, ahead: bool = False, before_step: Callable[[int], None] | None = None
) -> dict[str, list[list[int]]]:
    """Answers of every session, a list per part; the answers to other requests are dropped."""
    clients = {name: Session(llm, name, parts, ahead=ahead) for name, parts in sessions.items()}
    step = 0
    while not all(client.done for client in clients.values()):
        for client in clients.values():
            client.go_on()
        if before_step is not None:
            before_step(step)
        for output in llm.llm_engine.step():
            if output.request_id in clients:
                clients[output.request_id].take(output)
        step += 1
        assert step < 3000, "the sessions never end"
    return {name: client.answers[:-1] for name, client in clients.items()}


def as_prompts(parts: Sequence[Part], answers: Sequence[Sequence[int]]) -> list[list[int]]:
    """The equivalent prompt of each part of a session: all text before it, without the last token of each answer."""
    text: list[int] = []
    prompts = []
    for part, answer in zip(parts, answers, strict=True):
        text = [*text, *part.prompt]
        prompts.append(text)
        text = [*text, *answer[:-1]]
    return prompts


def truths(sessions: Sessions, answers: Mapping[str, Sequence[list[int]]]) -> dict[tuple[int, ...], list[int]]:
    """For scripted trees: the full token sequence that each of the sessions' prompts leads to."""
    return {
        tuple(prompt): [*prompt, *answer]
        for name, parts in sessions.items()
        for prompt, answer in zip(as_prompts(parts, answers[name]), answers[name], strict=True)
    }
