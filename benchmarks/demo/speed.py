# SPDX-License-Identifier: Apache-2.0
"""Tokens per second of plain vLLM and of vLLM with ReDrafter, one request at a time, greedy, in turns."""

import shutil
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console
from tqdm import tqdm

from benchmarks.demo.options import DemoOptions
from benchmarks.demo.pair import Pair
from redrafter_vllm.bench.configurations import Configuration
from redrafter_vllm.bench.figures import rows
from redrafter_vllm.bench.fleet import Fleet, Start, start_offline
from redrafter_vllm.bench.kinds import as_users_run_it
from redrafter_vllm.bench.memory import GIB, gpus
from redrafter_vllm.bench.prompts import Prompts
from redrafter_vllm.bench.rounds import RUN_FILE, Results, Round, requests_left, run_rounds
from redrafter_vllm.bench.settings import Plan, Settings

PLAIN, REDRAFTER = "vLLM as installed", "ReDrafter"
ENGINE = ("--dtype", "bfloat16")  # and compiled, as users run it


@dataclass(frozen=True)
class Speeds:
    """Both engines on one pair; `together` is whether they took turns, or ran one after the other, once each."""

    pair: Pair
    rounds: list[Round]
    together: bool

    @cached_property
    def rows(self) -> dict[str, dict[str, Any]]:
        """The figures of each engine, see `redrafter_vllm.bench.figures.row`."""
        return {row["configuration"]: row for row in rows(self.rounds, PLAIN)}

    @property
    def speedup(self) -> float:
        """The median over rounds."""
        return float(self.rows[REDRAFTER]["speedup"]["median"])

    @property
    def speedup_by_round(self) -> list[float]:
        by_round: list[float] = self.rows[REDRAFTER]["speedup_by_round"]
        return by_round

    def turn_with_drafts(self) -> dict[str, Any]:
        """ReDrafter's turn of the first round, with the tokens and the steps of each request."""
        return next(turn for turn in self.rounds[0] if turn["configuration"] == REDRAFTER)


def measure(
    pair: Pair,
    prompts: list[list[int]],
    options: DemoOptions,
    folder: Path,
    console: Console,
    start: Start = start_offline,
    *,
    engine_bytes: int = 0,
) -> Speeds:
    """Let both engines take turns on the same prompts; rounds and logs go to `folder`, in place of earlier ones.

    Where memory does not hold both engines, each makes one pass, one after the other.

    Args:
        engine_bytes: Memory that an engine needs, where that is more than is estimated from its files.

    Raises:
        ChildError: An engine failed.
        ValueError: There is no room for an engine, or the target has too few positions.
    """
    plan = _plan(pair, prompts, options, engine_bytes)
    settings = plan.settings
    console.print(_announcement(plan, max(engine_bytes, plan.bytes_each)), highlight=False, soft_wrap=True)
    if (folder / RUN_FILE).is_file():
        shutil.rmtree(folder)
    results = Results(folder)
    results.begin({"settings": settings.described()})
    given = Prompts([""] * len(prompts), prompts, adds_special_tokens=False)
    bar = tqdm(total=requests_left(settings, 0), unit="request", dynamic_ncols=True)
    # Outside of a terminal every description would stay as a line of its own.
    with (
        bar,
        Fleet(plan, given, folder / "logs", start, lambda text: bar.set_description(text, bar.fp.isatty())) as fleet,
    ):
        run_rounds(settings, fleet, results, 0, bar)
    return Speeds(pair, results.rounds(), plan.together)


def _plan(pair: Pair, prompts: list[list[int]], options: DemoOptions, engine_bytes: int) -> Plan:
    devices = tuple(gpus())
    settings = Settings(
        mode="offline",
        target=str(pair.target),
        configurations=(
            Configuration(PLAIN, None, as_users_run_it(bool(devices)).env),
            Configuration(REDRAFTER, options.speculative(pair.drafter, adaptive=None), {}),
        ),
        concurrency=(1,),
        requests=len(prompts),
        prompt_tokens=max(map(len, prompts)),
        max_tokens=options.max_tokens,
        rounds=options.rounds,
        options=ENGINE,
    )
    plan = Plan(settings, pair.target, devices)
    if plan.together and len(settings.configurations) * engine_bytes <= plan.free:
        return plan
    # With room for one engine, every round would begin with a start.
    return replace(plan, settings=replace(settings, rounds=1, one_at_a_time=True))


def _announcement(plan: Plan, each: int) -> str:
    settings = plan.settings
    turn = f"{settings.requests} prompts, at most {settings.max_tokens} new tokens each"
    if plan.together:
        return f"{settings.rounds} rounds in which both engines, side by side, take a turn: {turn}"
    return (
        f"an engine needs about {each / GIB:.1f} GiB and {plan.free / GIB:.1f} GiB are free: the engines "
        f"run one after the other, once each ({turn}), so the ratio also shows how fast the machine was in each pass"
    )
