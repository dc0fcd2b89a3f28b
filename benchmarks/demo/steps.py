# SPDX-License-Identifier: Apache-2.0
"""What each step of an engine emitted, and when."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Step:
    """One that emitted: when its tokens were there, how many, for how many requests, and for how many the first."""

    ended: float
    tokens: int
    requests: int
    begun: int


@dataclass
class Steps:
    """The emitting steps in order, and by request id how many tokens each of its steps emitted."""

    in_order: list[Step] = field(default_factory=list)
    by_request: dict[str, list[int]] = field(default_factory=dict)

    def add(self, ended: float, emitted: dict[str, int]) -> None:
        """A step that emitted so many tokens for each request."""
        begun = sum(request not in self.by_request for request in emitted)
        self.in_order.append(Step(ended, sum(emitted.values()), len(emitted), begun))
        for request, tokens in emitted.items():
            self.by_request.setdefault(request, []).append(tokens)


@contextmanager
def recorded_steps(llm: Any) -> Iterator[Steps]:
    """Of an engine inside this process."""
    core = llm.llm_engine.engine_core
    original = core.get_output
    steps = Steps()

    def get_output() -> Any:
        outputs = original()
        emitted = {out.request_id: len(out.new_token_ids) for out in outputs.outputs if out.new_token_ids}
        if emitted:
            steps.add(time.perf_counter(), emitted)
        return outputs

    core.get_output = get_output
    try:
        yield steps
    finally:
        core.get_output = original


def decoding(steps: Sequence[Step]) -> dict[str, float]:
    """Tokens and seconds after the last request's first token: no prompt is computed in that time."""
    begin = max(index for index, step in enumerate(steps) if step.begun)
    return {
        "tokens": sum(step.tokens for step in steps[begin + 1 :]),
        "seconds": steps[-1].ended - steps[begin].ended,
    }
