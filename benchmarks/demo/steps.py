# SPDX-License-Identifier: Apache-2.0
"""The steps of the demonstration, up to its figures."""

import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from benchmarks.demo.inflated import MEMORY_NEEDED, inflate
from benchmarks.demo.options import DemoOptions
from benchmarks.demo.pair import Pair, obtain_pair
from benchmarks.demo.prompts import choose_prompts, load_tokenizer
from benchmarks.demo.report import Evidence
from benchmarks.demo.serve import Answer, Served, serve_and_ask
from benchmarks.demo.speed import Speeds, measure
from benchmarks.engines.offline import EngineResult, Workload, run_engine
from redrafter_vllm.bench.kinds import plain

# In a turn of the speed measurement, so that all rounds together take about two minutes on two cores: a step of the
# inflated pair takes four times as long.
TURN_PROMPTS, INFLATED_TURN_PROMPTS = 4, 2


def gather(options: DemoOptions, console: Console) -> tuple[Evidence, Any]:
    """Run all steps; the evidence and the target's tokenizer."""
    started = time.monotonic()
    console.rule("1  target and drafter", align="left")
    pair = obtain_pair(options, console)
    tokenizer = load_tokenizer(pair.target)
    prompts = choose_prompts(tokenizer, options.prompts)

    console.rule("2  vllm serve with the drafter", align="left")
    served = serve_and_ask(pair, prompts, options, console)

    console.rule("3  the same prompts without a drafter", align="left")
    expected = answers_of_plain(pair, served, options, console)

    console.rule("4  speed, with and without", align="left")
    speeds = measure_speeds(pair, served.greedy, options, console)
    return Evidence(pair, options, served, expected, speeds, time.monotonic() - started), tokenizer


def answers_of_plain(pair: Pair, served: Served, options: DemoOptions, console: Console) -> EngineResult:
    """Plain vLLM's tokens for the prompts as the server has tokenised them."""
    prompts = [answer.prompt_ids for answer in served.greedy]
    workload = Workload([], prompts, options.max_tokens, options.temperature)
    result = run_engine(plain(), pair.target, workload, options.out, console)
    tokens = sum(len(answer) for run in (result.greedy, result.seeded) for answer in run.tokens)
    console.print(f"{len(prompts)} prompts answered twice by plain vLLM, {tokens} tokens")
    return result


def measure_speeds(pair: Pair, answers: Sequence[Answer], options: DemoOptions, console: Console) -> list[Speeds]:
    """Of the pair, and of the inflated one unless that is unwanted or impossible."""
    prompts = [answer.prompt_ids for answer in answers]
    speeds = [measure(pair, prompts[:TURN_PROMPTS], options, options.out / "speed", console)]
    inflated = inflate(pair, options.out / "inflated", console) if options.inflated else None
    if inflated is not None:
        few = prompts[:INFLATED_TURN_PROMPTS]
        folder = options.out / "speed-inflated"
        speeds.append(measure(inflated, few, options, folder, console, engine_bytes=MEMORY_NEEDED))
    return speeds
