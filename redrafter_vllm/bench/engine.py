# SPDX-License-Identifier: Apache-2.0
"""An engine in a separate process that generates on request, so that several engines can take turns."""

import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from redrafter_vllm.bench.child import QUIET, ChildError, tail

START_SECONDS = 900.0
TURN_SECONDS = 1800.0
END_SECONDS = 3.0  # for a clean exit; all results have been received by then

Finished = Callable[[int], None]  # told how many more requests have finished


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
    options: tuple[
        str, ...
    ] = ()  # of the engine, as on vLLM's command line; where there are some, `engine` is not used


class Request(Protocol):
    """Something to do with the engine. It is pickled, so its class belongs to a module that does not import vLLM."""

    def answer(self, llm: Any, job: Job, finished: Finished) -> dict[str, Any]:
        """The result, computed in the engine's process."""


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

    @property
    def pid(self) -> int:
        """Of the engine's process."""
        assert self._process.pid is not None
        return self._process.pid

    def wait_until_ready(self, limit: float = START_SECONDS) -> str:
        """The runner that vLLM chose: V1 or V2."""
        return self._receive(limit)

    def is_ready(self, within: float) -> bool:
        """Whether `wait_until_ready` would return at once, or raise, `within` so many seconds from now."""
        return self._pipe.poll(within)

    def take(self, request: Request, finished: Finished = lambda number: None) -> dict[str, Any]:
        """The request's result; `finished` is told when requests to the engine finish."""
        self._pipe.send(request)
        while isinstance(message := self._receive(TURN_SECONDS), _Progress):
            finished(message.finished)
        return message

    def _receive(self, limit: float) -> Any:
        try:
            if self._pipe.poll(limit):
                return self._pipe.recv()
            reason = f"took more than {limit:.0f} s"
        except (EOFError, ConnectionResetError):
            reason = "failed"
        raise ChildError(f"{self.job.name} {reason}.\n{tail(self.log)}")


@dataclass(frozen=True)
class _Progress:
    """A message of the child's before a result."""

    finished: int


def _serve(job: Job, log: Path, pipe: Connection) -> None:
    """The child process: an engine that answers each received request, until the pipe closes."""
    with log.open("wb") as output:
        os.dup2(output.fileno(), sys.stdout.fileno())
        os.dup2(output.fileno(), sys.stderr.fileno())
    os.environ.update({"VLLM_ENABLE_V1_MULTIPROCESSING": "0", **QUIET, **job.env})
    try:
        llm = _start(job)
        pipe.send("V2" if llm.llm_engine.vllm_config.use_v2_model_runner else "V1")
        while True:
            request: Request = pipe.recv()
            pipe.send(request.answer(llm, job, lambda number: pipe.send(_Progress(number))))
    except (EOFError, BrokenPipeError):
        return
    except Exception:
        traceback.print_exc()
        raise


def _start(job: Job) -> Any:
    from vllm import LLM, SamplingParams

    if job.options:
        llm = LLM.from_engine_args(_parsed(job))
    else:
        llm = LLM(job.target, speculative_config=job.speculative, **job.engine)
    # Costs of the first use belong to the start. Reversed prompts share no full cache block with the measured ones.
    warm_up = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True, detokenize=False)
    llm.generate([{"prompt_token_ids": prompt[::-1]} for prompt in job.prompts[:2]], warm_up, use_tqdm=False)
    return llm


def _parsed(job: Job) -> Any:
    """vLLM's `EngineArgs`; a mistake in the options ends the process with the parser's message."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    given = ["--model", job.target, *job.options]
    if job.speculative is not None:
        given += ["--speculative-config", json.dumps(job.speculative)]
    parser = EngineArgs.add_cli_args(FlexibleArgumentParser())
    return EngineArgs.from_cli_args(parser.parse_args(given))
