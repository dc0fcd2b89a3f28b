# SPDX-License-Identifier: Apache-2.0
"""The engines of a benchmark: side by side where memory allows, else one at a time."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from redrafter_vllm.adaptive.pause import MEMORY
from redrafter_vllm.bench import memory
from redrafter_vllm.bench.closed_loop import Turn
from redrafter_vllm.bench.configurations import Configuration
from redrafter_vllm.bench.engine import EngineProcess, Finished, Job
from redrafter_vllm.bench.load import Load, levels, most_at_a_time
from redrafter_vllm.bench.prompts import Prompts
from redrafter_vllm.bench.settings import Plan

WARM_UP_TOKENS = 8  # of each request, where only the first steps of a batch size take longer
# Steps after which trees that adapt know a load. In the first ones the sizes of a step that may pay are tried: of sizes
# up to 16 nodes for each request there are at most 16 (adaptive/costs.py), and each fourth step tries one. `MEMORY` is
# how many steps a judgement of drafting looks back on.
TRIED_STEPS = 64
ADAPTIVE_WARM_UP_STEPS = TRIED_STEPS + MEMORY
TICK = 1.0  # seconds

Waiting = Callable[[float], None]  # told the seconds since the start


class Engine(Protocol):
    """A started engine of one configuration."""

    @property
    def pid(self) -> int:
        """Of its process, which may have children."""

    def take(self, turn: Turn, finished: Finished) -> dict[str, Any]:
        """The figures of a turn, see `closed_loop.result_of`; a server's outputs are texts."""

    def warm_up(self, turn: Turn) -> int:
        """Let the engine answer the turn, whose figures do not count; the steps that this took."""


class OfflineEngine:
    """An engine in a process of its own, without a server."""

    def __init__(self, process: EngineProcess) -> None:
        self.process = process

    @property
    def pid(self) -> int:
        return self.process.pid

    def take(self, turn: Turn, finished: Finished) -> dict[str, Any]:
        return self.process.take(turn, finished)

    def warm_up(self, turn: Turn) -> int:
        return int(self.process.take(turn)["decode_steps"])


Start = Callable[[Plan, Configuration, Prompts, Path, ExitStack, Waiting], Engine]


def start_offline(
    plan: Plan, configuration: Configuration, prompts: Prompts, log: Path, stack: ExitStack, waiting: Waiting
) -> Engine:
    """Raises ChildError where the engine fails."""
    job = Job(
        name=configuration.name,
        target=str(plan.folder),
        speculative=None if configuration.speculative is None else dict(configuration.speculative),
        engine={},
        prompts=prompts.ids,
        max_tokens=plan.settings.max_tokens,
        env=configuration.env,
        options=tuple(plan.engine_options(configuration)),
    )
    process = stack.enter_context(EngineProcess(job, log))
    seconds = 0.0
    while not process.is_ready(TICK):
        seconds += TICK
        waiting(seconds)
    process.wait_until_ready()
    return OfflineEngine(process)


class Fleet:
    """Gives engines by name, started and warm; ends them all when the block is left."""

    def __init__(self, plan: Plan, prompts: Prompts, logs: Path, start: Start, tell: Callable[[str], None]) -> None:
        self.plan, self.prompts, self.logs, self._start, self._tell = plan, prompts, logs, start, tell
        self._running: dict[str, tuple[Engine, ExitStack]] = {}
        self._warm: set[tuple[str, int]] = set()
        # Bytes by configuration: of the device that came into use with its start, else of its processes at their peaks.
        self.memory: dict[str, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for name in [*self._running]:
            self._end(name)

    def start_all(self) -> None:
        """Start all engines where they run side by side, so that one that does not start is known before any work.

        Raises:
            ChildError: An engine did not start.
        """
        if self.plan.together:
            for configuration in self.plan.settings.configurations:
                self.engine(configuration.name)

    def turn(self, name: str, turn: Turn, finished: Finished) -> dict[str, Any]:
        """A turn of an engine, which is started and warmed up before if it is not.

        Raises:
            ChildError: The engine failed.
        """
        engine = self.prepare(name, turn.load)
        found = engine.take(turn, finished)
        if not self.plan.has_gpu:
            self.memory[name] = max(self.memory.get(name, 0), memory.peak_resident(engine.pid))
        return found

    def prepare(self, name: str, load: Load) -> Engine:
        """The engine of a configuration, started and warm for a load.

        Raises:
            ChildError: The engine failed.
        """
        engine = self.engine(name)
        for requests in levels(load) if self._adapts(name) else [most_at_a_time([load])]:
            if (name, requests) not in self._warm:
                self._warm_up(name, engine, requests)
                self._warm.add((name, requests))
        return engine

    def engine(self, name: str) -> Engine:
        """The engine of a configuration; starts it, and ends another one where only one has room.

        Raises:
            ChildError: It did not start.
        """
        if name in self._running:
            return self._running[name][0]
        if not self.plan.together:
            for other in [*self._running]:
                self._end(other)
        before, stack = memory.device_memory_used(), ExitStack()
        try:
            engine = self._start(
                self.plan,
                self._configuration(name),
                self.prompts,
                self.log(name),
                stack,
                lambda seconds: self._tell(f"starting {name}, {seconds:.0f} s"),
            )
            self._running[name] = engine, stack
            self._run_shortly(engine, self.plan.settings.most_at_a_time)
        except BaseException:
            self._running.pop(name, None)
            stack.close()
            raise
        if self.plan.has_gpu:
            self.memory[name] = max(0, memory.device_memory_used() - before)
        return engine

    def _warm_up(self, name: str, engine: Engine, requests: int) -> None:
        self._run_shortly(engine, requests)
        if self._adapts(name):
            self._let_adapt(name, engine, requests)

    def _run_shortly(self, engine: Engine, requests: int) -> None:
        """The first step of another batch size costs extra time, which must not count."""
        settings = self.plan.settings
        tokens = min(WARM_UP_TOKENS, settings.max_tokens)
        engine.warm_up(Turn(requests, requests, tokens, settings.temperature, ignore_eos=True))

    def _let_adapt(self, name: str, engine: Engine, requests: int) -> None:
        """Requests as they will be measured, a batch after the other, until the trees have adapted to so many."""
        settings = self.plan.settings
        tokens = min(ADAPTIVE_WARM_UP_STEPS, settings.max_tokens)
        steps = first = 0
        while steps < ADAPTIVE_WARM_UP_STEPS:
            self._tell(f"{name} adapts to {requests} at a time, step {steps} of {ADAPTIVE_WARM_UP_STEPS}")
            turn = Turn(requests, requests, tokens, settings.temperature, settings.ignores_eos, first=first)
            # Texts may end with their first token.
            steps += max(1, engine.warm_up(turn))
            first += requests

    def _configuration(self, name: str) -> Configuration:
        return next(one for one in self.plan.settings.configurations if one.name == name)

    def _adapts(self, name: str) -> bool:
        return self._configuration(name).adapts

    def log(self, name: str) -> Path:
        stem = "".join(letter if letter.isalnum() else "-" for letter in name.lower())
        return self.logs / f"{stem}.log"

    def _end(self, name: str) -> None:
        self._running.pop(name)[1].close()
        self._warm = {(other, concurrency) for other, concurrency in self._warm if other != name}
