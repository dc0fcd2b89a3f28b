# SPDX-License-Identifier: Apache-2.0
"""An engine in a separate process that generates on request, so that several engines can take turns."""

import os
import sys
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.engine_process import QUIET, ChildError, tail
from benchmarks.engines.generate import read_counters, run

START_SECONDS = 900.0
TURN_SECONDS = 1800.0
END_SECONDS = 3.0  # for a clean exit; all results have been received by then


@dataclass(frozen=True)
class Job:
    """An engine, and the prompts that it continues."""

    name: str
    target: str
    speculative: dict[str, Any] | None
    engine: Mapping[str, Any]
    prompts: list[list[int]]
    max_tokens: int
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Turn:
    """One pass over some of the prompts. With a temperature, request i samples with seed i."""

    prompts: int  # so many of them, from `first` on
    batch: int = 1  # requests at a time
    temperature: float = 0.0
    logprobs: int | None = None  # the N highest log-probabilities at each position
    tokens: int | None = None  # new tokens of each prompt; None takes the job's
    phases: bool = False  # time the phases of decode steps, which costs a little time
    first: int = 0


class EngineProcess:
    """Starts an engine, and ends it when the block is left. The child's output goes to `log`.

    Raises:
        ChildError: The engine failed or took too long; the message holds the end of its log.
    """

    def __init__(self, job: Job, log: Path) -> None:
        self.job, self.log = job, log
        log.parent.mkdir(parents=True, exist_ok=True)
        context = get_context("spawn")
        self._pipe, child = context.Pipe()
        self._process = context.Process(target=_serve, args=(job, log, child), name=job.name)
        self._process.start()
        child.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._pipe.close()
        self._process.join(END_SECONDS)
        self._process.kill()
        self._process.join()

    def wait_until_ready(self, limit: float = START_SECONDS) -> str:
        """The runner that vLLM chose: V1 or V2."""
        return self._receive(limit)

    def take(self, turn: Turn) -> dict[str, Any]:
        """Tokens, steps, seconds, counters and so on of one turn; where requested, log-probabilities and phases."""
        self._pipe.send(turn)
        return self._receive(TURN_SECONDS)

    def _receive(self, limit: float) -> Any:
        try:
            if self._pipe.poll(limit):
                return self._pipe.recv()
            reason = f"took more than {limit:.0f} s"
        except (EOFError, ConnectionResetError):
            reason = "failed"
        raise ChildError(f"{self.job.name} {reason}.\n{tail(self.log)}")


def _serve(job: Job, log: Path, pipe: Connection) -> None:
    """The child process: an engine that generates for each received turn, until the pipe closes."""
    with log.open("wb") as output:
        os.dup2(output.fileno(), sys.stdout.fileno())
        os.dup2(output.fileno(), sys.stderr.fileno())
    os.environ.update({"VLLM_ENABLE_V1_MULTIPROCESSING": "0", **QUIET, **job.env})
    try:
        llm = _start(job)
        pipe.send("V2" if llm.llm_engine.vllm_config.use_v2_model_runner else "V1")
        while True:
            pipe.send(_generate(llm, job, pipe.recv()))
    except (EOFError, BrokenPipeError):
        return
    except Exception:
        traceback.print_exc()
        raise


def _start(job: Job) -> Any:
    from vllm import LLM, SamplingParams

    llm = LLM(job.target, speculative_config=job.speculative, **job.engine)
    # Costs of the first use belong to the start. Reversed prompts share no full cache block with the measured ones.
    warm_up = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True, detokenize=False)
    llm.generate([{"prompt_token_ids": prompt[::-1]} for prompt in job.prompts[:2]], warm_up, use_tqdm=False)
    return llm


def _generate(llm: Any, job: Job, turn: Turn) -> dict[str, Any]:
    from benchmarks.serving.speedup.phases import decode_phases

    llm.reset_prefix_cache()
    if not turn.phases:
        return _continue(llm, job, turn)
    with decode_phases(llm) as steps:
        found = _continue(llm, job, turn)
    return {**found, "phases": {name: value / steps.count for name, value in steps.watch.seconds.items()}}


def _continue(llm: Any, job: Job, turn: Turn) -> dict[str, Any]:
    from vllm import SamplingParams

    prompts = job.prompts[turn.first : turn.first + turn.prompts]
    assert turn.prompts % turn.batch == 0 and len(prompts) == turn.prompts
    sampling = [
        SamplingParams(
            temperature=turn.temperature,
            seed=turn.first + index if turn.temperature else None,
            max_tokens=turn.tokens or job.max_tokens,
            logprobs=turn.logprobs,
            detokenize=False,
        )
        for index in range(turn.prompts)
    ]
    before = read_counters(llm)
    groups = [
        run(llm, prompts[start : start + turn.batch], sampling[start : start + turn.batch])
        for start in range(0, turn.prompts, turn.batch)
    ]
    return {
        "tokens": [tokens for group in groups for tokens in group["tokens"]],
        "steps": [steps for group in groups for steps in group["steps"]],
        "logprobs": [logprobs for group in groups for logprobs in group["logprobs"]],
        "seconds": sum(group["seconds"] for group in groups),
        "decoding": {name: sum(group["decoding"][name] for group in groups) for name in ("tokens", "seconds")},
        "most_at_once": min(group["most_at_once"] for group in groups),
        "preemptions": sum(group["preemptions"] for group in groups),
        "counters": asdict(read_counters(llm) - before),
    }
