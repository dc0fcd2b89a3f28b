# SPDX-License-Identifier: Apache-2.0
"""What each step of an engine emitted, and when it ended."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Step:
    """A step that emitted tokens."""

    ended: float  # seconds, of `time.perf_counter`
    tokens: int
    requests: int  # that it emitted tokens for
    begun: int  # those of them that had their first token


@dataclass
class Steps:
    """The steps of one generation that emitted tokens."""

    in_order: list[Step] = field(default_factory=list)
    by_request: dict[str, list[int]] = field(default_factory=dict)  # tokens of each step, by request id

    def add(self, ended: float, emitted: dict[str, int]) -> None:
        """Add a step that ended at `ended` and emitted these numbers of tokens, by request id."""
        begun = sum(request not in self.by_request for request in emitted)
        self.in_order.append(Step(ended, sum(emitted.values()), len(emitted), begun))
        for request, tokens in emitted.items():
            self.by_request.setdefault(request, []).append(tokens)


@contextmanager
def recorded_steps(llm: Any, finished: Callable[[int], None] | None = None) -> Iterator[Steps]:
    """Record the steps of an engine in this process, whose core's `get_output` is wrapped meanwhile.

    `finished` is told how many requests a step has finished, if there are any.
    """
    core = llm.llm_engine.engine_core
    original = core.get_output
    steps = Steps()

    def get_output() -> Any:
        outputs = original()
        emitted = {out.request_id: len(out.new_token_ids) for out in outputs.outputs if out.new_token_ids}
        if emitted:
            steps.add(time.perf_counter(), emitted)
        if finished is not None and (ended := sum(out.finished for out in outputs.outputs)):
            finished(ended)
        return outputs

    core.get_output = get_output
    try:
        yield steps
    finally:
        core.get_output = original


def decoding(steps: Sequence[Step]) -> dict[str, float]:
    """Tokens and seconds after the last request's first token, when no prompt is computed any more."""
    begin = max(index for index, step in enumerate(steps) if step.begun)
    return {
        "tokens": sum(step.tokens for step in steps[begin + 1 :]),
        "seconds": steps[-1].ended - steps[begin].ended,
    }
