# SPDX-License-Identifier: Apache-2.0
"""Feeding a stream of requests to an engine step by step, independently of time."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

from tests.engine.differential.cases import Case
from tests.engine.generation import core, runner, scheduler
from tests.engine.sessions import Session

RESET_EVERY = 101  # steps, after which every running request starts over and nothing is cached


@dataclass
class Answer:
    """What a client received of one request."""

    completions: dict[int, Any] = field(default_factory=dict)  # by index
    finished: bool = False
    aborted: bool = False
    prompt_logprobs: Any = None
    num_cached: int = 0
    session: Session | None = None  # its client, of a session

    def take(self, output: Any) -> None:
        if self.session is not None:
            self.session.take(output)
            self.finished = self.session.done
            return
        self.completions.update({completion.index: completion for completion in output.outputs})
        self.finished |= output.finished
        self.prompt_logprobs = output.prompt_logprobs or self.prompt_logprobs
        self.num_cached = max(self.num_cached, output.num_cached_tokens or 0)


@dataclass
class Stream:
    """The results of a stream."""

    answers: dict[str, Answer]
    steps: int = 0
    updates: int = 0  # number of updates of completions
    preemptions: int = 0

    @property
    def tokens_per_update(self) -> float:
        tokens = sum(len(one.token_ids) for answer in self.answers.values() for one in answer.completions.values())
        return tokens / self.updates


def run_stream(llm: Any, cases: Sequence[Case], after_step: Callable[[int], None] | None = None) -> Stream:
    """Add each request at its step, abort those whose client leaves, and step until nothing is left."""
    # A grammar compiled in the background would be ready at an unknown step.
    core(llm).structured_output_manager._use_async_grammar_compilation = False
    stream = Stream({case.name: Answer() for case in cases})
    with counted_preemptions(llm, stream):
        _feed(llm, cases, stream, after_step or (lambda step: None))
        settle(llm)
    return stream


def _feed(llm: Any, cases: Sequence[Case], stream: Stream, after_step: Callable[[int], None]) -> None:
    engine = llm.llm_engine
    waiting = list(reversed(cases))
    aborts: dict[int, list[Case]] = {}
    sizes: dict[tuple[str, int], int] = {}
    while waiting or engine.has_unfinished_requests():
        if not engine.has_unfinished_requests():
            stream.steps = max(stream.steps, waiting[-1].arrival)
        while waiting and waiting[-1].arrival <= stream.steps:
            case = waiting.pop()
            when = {"priority": case.priority, "arrival_time": float(case.arrival)}
            if case.more:
                ahead = case.abort_in_step  # the only output for a session that continues
                stream.answers[case.name].session = Session(llm, case.name, case.parts, ahead=ahead, **when)
            else:
                engine.add_request(case.name, {"prompt_token_ids": list(case.prompt)}, case.sampling(), **when)
            if case.abort_after is not None:
                aborts.setdefault(stream.steps + case.abort_after, []).append(case)
        leaving = [case for case in aborts.pop(stream.steps, []) if not stream.answers[case.name].finished]
        for case in leaving:
            stream.answers[case.name].aborted = True
        engine.abort_request([case.name for case in leaving if not case.abort_in_step])
        for answer in stream.answers.values():
            if answer.session is not None and not answer.aborted:
                answer.session.go_on()
                answer.finished = answer.session.done
        # A session that waits for its client keeps its blocks, and vLLM then cannot clear the cache.
        if stream.steps % RESET_EVERY == RESET_EVERY - 1 and not scheduler(llm).kv_holding_waiting:
            assert engine.reset_prefix_cache(reset_running_requests=True)
        with aborted_in_step(llm, [case.name for case in leaving if case.abort_in_step]):
            outputs = engine.step()
        for output in outputs:
            answer = stream.answers[output.request_id]
            assert not answer.aborted, f"{output.request_id} was aborted and still answers"
            answer.take(output)
            for one in output.outputs if answer.session is None else ():
                key = output.request_id, one.index
                stream.updates += len(one.token_ids) > sizes.get(key, 0)
                sizes[key] = len(one.token_ids)
        after_step(stream.steps)
        stream.steps += 1


def settle(llm: Any) -> None:
    """Step until the engine has released its last requests."""
    while core(llm).scheduler.has_requests() or core(llm).batch_queue:
        llm.llm_engine.step()


@contextmanager
def counted_preemptions(llm: Any, stream: Stream) -> Iterator[None]:
    """Count preemptions at the scheduler: vLLM's own counter is shared by all engines of a process."""
    preempt = scheduler(llm)._preempt_request

    def counted(request: Any, *args: Any, **kwargs: Any) -> None:
        stream.preemptions += 1
        forget_uncomputed_blocks(llm, request)
        preempt(request, *args, **kwargs)

    with patch.object(scheduler(llm), "_preempt_request", counted):
        yield


def forget_uncomputed_blocks(llm: Any, request: Any) -> None:
    """Exclude a bug of vLLM from the comparison: plain vLLM 0.32 has it, too.

    Blocks enter the prefix cache when a request is scheduled. With priorities a request can be preempted by one that is
    scheduled after it in the same step; its blocks then stay in the cache without having been computed.
    """
    manager = scheduler(llm).kv_cache_manager
    for single, blocks in zip(
        manager.coordinator.single_type_managers, manager.get_block_ids(request.request_id), strict=True
    ):
        manager.block_pool.evict_blocks(set(blocks[request.num_computed_tokens // single.block_size :]))


@contextmanager
def aborted_in_step(llm: Any, names: list[str]) -> Iterator[None]:
    """Within it the next step runs for requests whose clients leave before its tokens are processed.

    As in a server: the front end drops the request at once, the core finds the abort in its queue after the step.
    """
    if not names:
        yield
        return
    sample, aborts = runner(llm).sample_tokens, core(llm).aborts_queue
    internal = llm.llm_engine.output_processor.abort_requests(names, internal=False)

    def sample_tokens(*args: Any, **kwargs: Any) -> Any:
        if internal:
            aborts.put(list(internal))
            internal.clear()
        return sample(*args, **kwargs)

    with patch.object(runner(llm), "sample_tokens", sample_tokens):
        yield
    if internal:  # no step ran
        core(llm).abort_requests(internal)
