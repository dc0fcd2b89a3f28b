# SPDX-License-Identifier: Apache-2.0
"""Times of the phases of a decode step."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

REST = "everything else"


class Stopwatch:
    """Seconds spent in each phase. Phases may be nested: time in an inner one does not count for the outer one."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.seconds: dict[str, float] = {}
        self._clock = clock
        self._running: list[str] = []
        self._since = 0.0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self._charge()
        self._running.append(name)
        try:
            yield
        finally:
            self._charge()
            self._running.pop()

    def restore(self, earlier: dict[str, float]) -> None:
        """Go back to an earlier state of `seconds`."""
        self._charge()
        self.seconds = dict(earlier)

    def _charge(self) -> None:
        now = self._clock()
        if self._running:
            name = self._running[-1]
            self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
        self._since = now


def timed(watch: Stopwatch, name: str, owner: Any, method: str) -> Any:
    """A patch of `owner.method` that counts the time of its calls for the phase `name`."""
    original = getattr(owner, method)

    def call(*args: Any, **kwargs: Any) -> Any:
        with watch.phase(name):
            return original(*args, **kwargs)

    return patch.object(owner, method, call)


class DecodeSteps:
    """Counts the steps that only decode, and removes the others' time from the stopwatch."""

    def __init__(self, watch: Stopwatch) -> None:
        self.watch = watch
        self.count = 0
        self._has_prompts = False

    def schedule(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            scheduled = original(*args, **kwargs)
            self._has_prompts = bool(scheduled.scheduled_new_reqs)
            return scheduled

        return call

    def step(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            before = dict(self.watch.seconds)
            with self.watch.phase(REST):
                result = original(*args, **kwargs)
            if self._has_prompts:
                self.watch.restore(before)
            else:
                self.count += 1
            return result

        return call


@contextmanager
def decode_phases(llm: Any) -> Iterator[DecodeSteps]:
    """Time the phases of the steps that only decode, in an engine inside this process on Model Runner V2.

    Prompts must fit in one step. Meaningful on a CPU only: on a GPU the host runs ahead of the device.
    """
    core = llm.llm_engine.engine_core.engine_core
    runner = core.model_executor.driver_worker.worker.model_runner
    watch = Stopwatch()
    steps = DecodeSteps(watch)
    phases = [
        ("schedule and account, host", core.scheduler, "schedule"),
        ("schedule and account, host", core.scheduler, "update_from_output"),
        ("prepare inputs", runner, "prepare_inputs"),
        ("prepare inputs", runner.model_state, "prepare_attn"),
        ("prepare inputs", runner.model_state, "prepare_inputs"),
        ("target: layers", runner.model, "forward"),
        ("target: logits", runner.model, "compute_logits"),
        ("sample, verify", runner, "sample"),
        ("compact the cache", runner.model_state, "postprocess_state"),
    ]
    if runner.speculator is not None:
        phases.append(("draft", runner.speculator, "propose"))
    with ExitStack() as stack:
        stack.enter_context(patch.object(core.scheduler, "schedule", steps.schedule(core.scheduler.schedule)))
        stack.enter_context(patch.object(core, "step_fn", steps.step(core.step_fn)))
        for name, owner, method in phases:
            stack.enter_context(timed(watch, name, owner, method))
        yield steps
