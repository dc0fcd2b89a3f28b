# SPDX-License-Identifier: Apache-2.0
"""One turn of an engine: the job's prompts in batches, with what each emitted and how long it took."""

from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.engines.generate import read_counters, run
from redrafter_vllm.bench.engine import Finished, Job


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

    def answer(self, llm: Any, job: Job, finished: Finished) -> dict[str, Any]:
        """Tokens, steps, seconds, counters and so on of one turn; where requested, log-probabilities and phases."""
        from redrafter_vllm.bench.phases import decode_phases

        llm.reset_prefix_cache()
        if not self.phases:
            return _continue(llm, job, self)
        with decode_phases(llm) as steps:
            found = _continue(llm, job, self)
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
