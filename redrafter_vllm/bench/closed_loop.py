# SPDX-License-Identifier: Apache-2.0
"""One turn of an engine: as many requests at a time as given, each followed by the next as soon as it ends."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from redrafter_vllm.bench.acceptance import acceptance_of_steps, tokens_per_step
from redrafter_vllm.bench.engine import Finished, Job
from redrafter_vllm.bench.load import Load, limits
from redrafter_vllm.bench.phases import REST, decode_phases

# Counters of the plugin: time that the device spent.
DRAFTING, STEPS = "vllm:redrafter_draft_microseconds", "vllm:redrafter_step_microseconds"
# Counters of what was drafted: vLLM's for any method, and the plugin's.
DRAFTED, SKIPPED = "vllm:spec_decode_num_draft_tokens", "vllm:redrafter_skipped_rounds"


@dataclass
class Answer:
    """What a request has received so far. Times are seconds of `time.perf_counter`."""

    started: float
    first: float = 0.0
    ended: float = 0.0
    tokens: list[int] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)  # tokens of each step, the prompt's first

    def add(self, tokens: list[int], now: float) -> None:
        if not tokens:
            return
        self.first = self.first or now
        self.ended = now
        self.tokens += tokens
        self.steps.append(len(tokens))


@dataclass(frozen=True)
class Turn:
    """`requests` prompts from the `first` on, under a load. With a temperature request i has seed i."""

    requests: int
    load: Load
    max_tokens: int
    temperature: float = 0.0
    ignore_eos: bool = False
    phases: bool = False  # time the phases of steps, which costs a little time
    first: int = 0  # behind the job's last prompt its first follows

    def prompts_of(self, prompts: Sequence[Any]) -> list[Any]:
        """Those that the turn has."""
        return [prompts[(self.first + index) % len(prompts)] for index in range(self.requests)]

    def answer(self, llm: Any, job: Job, finished: Finished) -> dict[str, Any]:
        """Times and tokens by request, tokens per step, acceptance; where requested, a step's milliseconds by phase.

        `decode_steps` is the number of the engine's steps that only decoded, `nodes_per_step` that of the draft tokens
        verified in a request's mean step, and `skipped` the part of the engine's steps before which adaptive trees drew
        none, as drafting did not pay. Either is None where the engine does not count it.
        """
        llm.reset_prefix_cache()
        loop = ClosedLoop(llm, finished)
        sampling = [self._sampling(index) for index in range(self.requests)]
        allowed = limits(self.load, self.requests)[: self.requests]
        prompts = self.prompts_of(job.prompts)
        if not self.phases:
            before = _counters(llm)
            found = loop.run(prompts, sampling, allowed)
            return {**found, **drafts_of(found, before, _counters(llm))}
        with _phases(llm, loop) as milliseconds:
            found = loop.run(prompts, sampling, allowed)
        return {**found, "milliseconds": milliseconds()}

    def _sampling(self, index: int) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            temperature=self.temperature,
            seed=index if self.temperature else None,
            max_tokens=self.max_tokens,
            ignore_eos=self.ignore_eos,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )


class ClosedLoop:
    """Keeps an engine of this process busy, and records what every step of it emits."""

    def __init__(self, llm: Any, finished: Finished = lambda number: None) -> None:
        self.engine, self.finished = llm.llm_engine, finished
        self.decode_seconds: list[float] = []  # of the steps that computed no prompt

    def run(self, prompts: list[list[int]], sampling: list[Any], allowed: list[int]) -> dict[str, Any]:
        """See `Turn.answer`. At most `allowed[n]` run at a time while n have finished."""
        answers: dict[str, Answer] = {}
        running = 0
        began = time.perf_counter()
        while running or len(answers) < len(prompts):
            while (index := len(answers)) < len(prompts) and running < allowed[index - running]:
                answers[str(index)] = Answer(time.perf_counter())
                self.engine.add_request(str(index), {"prompt_token_ids": prompts[index]}, sampling[index])
                running += 1
            running -= self._step(answers)
        seconds = time.perf_counter() - began
        return {**result_of(list(answers.values()), seconds), "decode_steps": len(self.decode_seconds)}

    def _step(self, answers: dict[str, Answer]) -> int:
        """Run a step; how many requests it has finished."""
        since = time.perf_counter()
        outputs = self.engine.step()
        now = time.perf_counter()
        begun = ended = emitted = 0
        for output in outputs:
            answer = answers[output.request_id]
            new = list(output.outputs[0].token_ids)
            begun += bool(new) and not answer.tokens
            emitted += len(new)
            answer.add(new, now)
            ended += output.finished
        if emitted and not begun:
            self.decode_seconds.append(now - since)
        if ended:
            self.finished(ended)
        return ended


def result_of(answers: list[Answer], seconds: float) -> dict[str, Any]:
    """The figures of a turn, from what its requests received; `emitted` are the tokens of each step by request."""
    steps = [answer.steps for answer in answers]
    decoded = any(len(request) > 1 for request in steps)
    depth = max((max(request[1:], default=1) for request in steps), default=1) - 1
    return {
        "seconds": seconds,
        "outputs": [answer.tokens for answer in answers],
        "tokens": [len(answer.tokens) for answer in answers],
        "emitted": steps,
        "ttft": [answer.first - answer.started for answer in answers],
        "latency": [answer.ended - answer.started for answer in answers],
        "steps": sum(max(0, len(request) - 1) for request in steps),
        "tokens_per_step": tokens_per_step(steps) if decoded else None,
        "acceptance": acceptance_of_steps(steps, depth) if decoded else [],
    }


def drafts_of(
    found: Mapping[str, Any], before: Mapping[str, float], now: Mapping[str, float]
) -> dict[str, float | None]:
    """What was drafted in a turn; see `Turn.answer`."""

    def counted(name: str, steps: int) -> float | None:
        return (now[name] - before.get(name, 0.0)) / steps if name in now and steps else None

    return {
        "nodes_per_step": counted(DRAFTED, found["steps"]),
        "skipped": counted(SKIPPED, found["decode_steps"]),
    }


@contextmanager
def _phases(llm: Any, loop: ClosedLoop) -> Iterator[Callable[[], dict[str, float]]]:
    """A function that gives the milliseconds of a mean step by phase, once the steps have run.

    On a CPU under Model Runner V2 every phase of the steps that only decode. Elsewhere drafting and the rest of the
    device's time, where the plugin counts them; else the time of whole steps.
    """
    config = llm.llm_engine.vllm_config
    if config.device_config.device_type == "cpu" and config.use_v2_model_runner:
        with decode_phases(llm) as steps:
            yield lambda: {name: 1e3 * value / max(1, steps.count) for name, value in steps.watch.seconds.items()}
        return
    before = _counters(llm)

    def milliseconds() -> dict[str, float]:
        whole = 1e3 * sum(loop.decode_seconds) / max(1, len(loop.decode_seconds))
        now = _counters(llm)
        drafting, steps = (now.get(name, 0.0) - before.get(name, 0.0) for name in (DRAFTING, STEPS))
        if not steps:
            return {"whole step": whole}
        return {"draft": whole * drafting / steps, REST: whole * (1 - drafting / steps)}

    yield milliseconds


def _counters(llm: Any) -> dict[str, float]:
    """Those of the names above that the engine has."""
    names = (DRAFTING, STEPS, DRAFTED, SKIPPED)
    return {metric.name: metric.value for metric in llm.get_metrics() if metric.name in names}
