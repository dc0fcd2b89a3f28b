# SPDX-License-Identifier: Apache-2.0
"""Streaming-input sessions on an in-process engine, step by step: the messages are those that `AsyncLLM` sends."""

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tests.engine.generation import params


class Part(NamedTuple):
    """What one message of a session adds to its text, and how it is to be answered."""

    prompt: list[int]
    sampling: Any


@dataclass
class Session:
    """One session of an engine; `send` and `close` are what the client does."""

    llm: Any
    name: str
    priority: int = 0
    answers: list[list[int]] = field(default_factory=lambda: [[]])
    finish_reasons: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._close = self._request([0], params(), resumable=False)
        self.llm.llm_engine.input_processor.assign_request_id(self._close)

    @property
    def idle(self) -> bool:
        """Whether all that has been sent is answered."""
        return not self.answers[-1] and len(self.answers) > 1

    def send(self, part: Part) -> None:
        request = self._request(part.prompt, part.sampling, resumable=True)
        request.request_id, request.external_req_id = self._close.request_id, self.name
        self._add(request)

    def close(self) -> None:
        self._add(self._close)

    def take(self, output: Any) -> None:
        (completion,) = output.outputs
        self.answers[-1] += completion.token_ids
        if completion.finish_reason is not None:
            self.finish_reasons.append(completion.finish_reason)
            self.answers.append([])

    def _request(self, prompt: list[int], sampling: Any, *, resumable: bool) -> Any:
        from vllm.sampling_params import RequestOutputKind

        sampling = sampling.clone()
        sampling.output_kind = RequestOutputKind.DELTA
        engine = self.llm.llm_engine
        return engine.input_processor.process_inputs(
            self.name if resumable is False else self._close.request_id,
            {"prompt_token_ids": list(prompt)},
            sampling,
            supported_tasks=engine.get_supported_tasks(),
            priority=self.priority,
            resumable=resumable,
        )

    def _add(self, request: Any) -> None:
        engine = self.llm.llm_engine
        # Both sides go on to extend the list of the prompt; between processes each has its own.
        theirs = copy(request)
        theirs.prompt_token_ids = list(request.prompt_token_ids)
        engine.output_processor.add_request(request, None, None, 0)
        engine.engine_core.add_request(theirs)


def run_sessions(
    llm: Any,
    sessions: Mapping[str, Sequence[Part]],
    *,
    ahead: bool = False,
    before_step: Callable[[int], None] | None = None,
) -> dict[str, list[list[int]]]:
    """Answers of every session, a list for each part.

    A part follows when the one before is answered, `ahead` at once. Requests that run beside are no business of this.
    """
    open_sessions = {name: Session(llm, name) for name in sessions}
    waiting = {name: list(parts) for name, parts in sessions.items()}
    done: dict[str, list[list[int]]] = {}
    step = 0
    while len(done) < len(sessions):
        for name, session in open_sessions.items():
            answered = len(session.finish_reasons)
            sent = len(sessions[name]) - len(waiting[name])
            while waiting[name] and (ahead or answered == sent):
                session.send(waiting[name].pop(0))
                sent += 1
            if not waiting[name] and name not in done and (ahead or answered == sent):
                session.close()
                done[name] = session.answers
        if before_step is not None:
            before_step(step)
        deliver(llm, open_sessions)
        step += 1
        assert step < 5000, "the sessions never end"
    while any(len(session.finish_reasons) < len(sessions[name]) for name, session in open_sessions.items()):
        deliver(llm, open_sessions)
        step += 1
        assert step < 5000, "the sessions never end"
    return {name: session.answers[:-1] for name, session in open_sessions.items()}


def deliver(llm: Any, sessions: Mapping[str, Session]) -> list[Any]:
    """Run a step; what is not for the sessions is returned."""
    others = []
    for output in llm.llm_engine.step():
        if output.request_id in sessions:
            sessions[output.request_id].take(output)
        else:
            others.append(output)
    return others


def as_prompts(parts: Sequence[Part], answers: Sequence[list[int]]) -> list[list[int]]:
    """The prompt that each part of a session amounts to: all before it, without the last token of each answer."""
    text: list[int] = []
    prompts = []
    for part, answer in zip(parts, answers, strict=True):
        text = text + part.prompt
        prompts.append(text)
        text = text + answer[:-1]
    return prompts


def truths(
    sessions: Mapping[str, Sequence[Part]], answers: Mapping[str, Sequence[list[int]]]
) -> dict[tuple[int, ...], list[int]]:
    """For scripted trees: what each of the sessions' prompts leads to."""
    return {
        tuple(prompt): [*prompt, *answer]
        for name, parts in sessions.items()
        for prompt, answer in zip(as_prompts(parts, answers[name]), answers[name], strict=True)
    }
