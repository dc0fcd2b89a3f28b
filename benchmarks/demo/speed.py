# SPDX-License-Identifier: Apache-2.0
"""Tokens per second of plain vLLM and of vLLM with ReDrafter, one request at a time, greedy."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.demo.options import DemoOptions
from benchmarks.demo.pair import Pair
from benchmarks.demo.progress import working
from benchmarks.engines.offline import MAX_MODEL_LEN, Run
from benchmarks.serving.speedup.engine import Turn
from redrafter_vllm.bench.acceptance import DraftCounters
from redrafter_vllm.bench.engine import EngineProcess, Job
from redrafter_vllm.bench.kinds import EngineKind, as_users_run_it, with_redrafter

# bfloat16 and compiled, as users run it. Only one request at a time needs cache.
ENGINE: dict[str, Any] = {
    "dtype": "bfloat16",
    "max_model_len": MAX_MODEL_LEN,
    "max_num_seqs": 1,
    "kv_cache_memory_bytes": 1 << 28,
    "disable_log_stats": False,
    "skip_tokenizer_init": True,
}


@dataclass(frozen=True)
class Speed:
    """One engine's pass over all prompts, and vLLM's runner in it."""

    runner: str
    run: Run


@dataclass(frozen=True)
class Speeds:
    """Plain vLLM and ReDrafter on one pair, with as many nodes in every step (None: not run) and as serving chooses."""

    pair: Pair
    plain: Speed
    fixed: Speed | None
    redrafter: Speed

    @property
    def speedup(self) -> float:
        """Of ReDrafter as it serves."""
        return self.over_plain(self.redrafter)

    def over_plain(self, engine: Speed) -> float:
        return engine.run.tokens_per_second / self.plain.run.tokens_per_second


def measure(
    pair: Pair,
    prompts: list[list[int]],
    options: DemoOptions,
    folder: Path,
    console: Console,
    *,
    with_fixed: bool = True,
) -> Speeds:
    """Run the engines, one after the other, so that a machine needs memory for one; their logs go to `folder`.

    `with_fixed` runs ReDrafter with the same number of nodes in every step, too.

    Raises:
        ChildError: An engine failed.
    """
    fixed = with_redrafter(options.speculative(pair.drafter, adaptive=False))
    fixed = replace(fixed, name=f"{fixed.name}, fixed trees")
    adaptive = with_redrafter(options.speculative(pair.drafter, adaptive=None))
    run = partial(_measure_one, target=pair.target, prompts=prompts, options=options, folder=folder, console=console)
    plain = run(as_users_run_it(torch.cuda.is_available()))
    return Speeds(pair, plain, run(fixed) if with_fixed else None, run(adaptive))


def _measure_one(
    kind: EngineKind, target: Path, prompts: list[list[int]], options: DemoOptions, folder: Path, console: Console
) -> Speed:
    job = Job(kind.name, str(target), kind.speculative, ENGINE, prompts, options.max_tokens, kind.env)
    log = folder / f"{kind.name.lower().replace(' ', '-')}.log"
    with EngineProcess(job, log) as engine:
        with working(f"{kind.name}: starting and compiling", console):
            runner = engine.wait_until_ready()
        turns = []
        with working(f"{kind.name}: answering", console) as report:
            for index in range(len(prompts)):
                report(f"{index} of {len(prompts)} prompts")
                turns.append(engine.take(Turn(prompts=1, first=index)))
    speed = Speed(runner, joined(turns))
    console.print(f"{kind.name}: {speed.run.tokens_per_second:.1f} tokens/s", highlight=False)
    return speed


def joined(turns: Sequence[dict[str, Any]]) -> Run:
    """One run of several turns, as `EngineProcess.take` returns them."""
    return Run(
        tokens=[tokens for turn in turns for tokens in turn["tokens"]],
        steps=[steps for turn in turns for steps in turn["steps"]],
        seconds=sum(turn["seconds"] for turn in turns),
        counters=_summed([DraftCounters.from_dict(turn["counters"]) for turn in turns]),
    )


def _summed(counters: Sequence[DraftCounters]) -> DraftCounters:
    accepted = zip(*(each.accepted_at_least for each in counters), strict=True)
    return DraftCounters(sum(each.verifications for each in counters), tuple(map(sum, accepted)))
