# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks.serving.speedup --target DIR`: how much faster `LLM.generate` is with ReDrafter, and why.

The engines run at the same time, each in a separate process, and take turns on the same held-out prompts: vLLM as
installed (on a CPU: runner V1, native kernels, without this project's packages), and vLLM with ReDrafter. The speed-up
is the ratio of the turns' median speeds. On a CPU an additional turn, which does not count, times the phases of a step.
"""

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import Any

from rich.console import Console
from tqdm import tqdm
from transformers import AutoTokenizer

from benchmarks import cli
from benchmarks.assets import held_out_prompts, tokenized
from benchmarks.models.roofline import Layout, Workload, efficiency_ceiling, round_reads
from benchmarks.serving.chat.questions import Reader, first_turns
from benchmarks.serving.speedup.options import MODULE, Options, parse_args
from benchmarks.serving.speedup.report import judge, print_report
from redrafter_vllm.bench.child import ChildError
from redrafter_vllm.bench.engine import EngineProcess, Job
from redrafter_vllm.bench.kinds import EngineKind, as_users_run_it, with_redrafter
from redrafter_vllm.config import DraftingConfig
from redrafter_vllm.predict.shapes import drafter_config, find_shape

PLAIN = "vLLM as installed"
WARM_UP_TOKENS = 8


def run(options: Options, keep: Callable[[cli.Report], None] = lambda report: None) -> cli.Report:
    """The report; `keep` is called with it after each batch size."""
    config = {key: str(value) for key, value in asdict(options).items() if key not in ("out", "logs")}
    report: cli.Report = {"config": config, "runners": {}, "failed": {}, "results": []}
    few = [1 if number and not options.all_ways else len(options.drafting) for number in range(len(options.batches))]
    turns = options.rounds * sum(1 + ways for ways in few)
    with ExitStack() as stack, tqdm(total=turns, desc="turns", unit="turn") as bar:
        fleet = Fleet(options, stack, report["failed"], bar)
        report["runners"] = fleet.start()
        for batch, max_draftings in zip(options.batches, few, strict=True):
            report["results"] += compared(fleet, options, batch, max_draftings)
            keep(report)
    return report


class Fleet:
    """Engines by name. One with ReDrafter that fails is dropped, its error kept; an error of plain vLLM is raised."""

    def __init__(self, options: Options, stack: ExitStack, failed: dict[str, str], bar: tqdm) -> None:
        self.failed, self.bar, self.limit = failed, bar, options.start_seconds
        prompts = make_prompts(options)
        plain = as_users_run_it(has_gpu=options.device != "cpu")
        assert plain.name == PLAIN
        self.engines = {PLAIN: stack.enter_context(_engine(plain, None, options, prompts))}
        for name, drafting in options.drafting.items():
            kind = replace(with_redrafter(options.speculative(name)), name=name)
            self.engines[name] = stack.enter_context(_engine(kind, drafting, options, prompts))

    @property
    def drafting(self) -> list[str]:
        return [name for name in self.engines if name != PLAIN]

    def start(self) -> dict[str, str]:
        """Wait for all engines; the runner of each."""
        found = {name: self.call(name, lambda engine: engine.wait_until_ready(self.limit)) for name in [*self.engines]}
        return {name: runner for name, runner in found.items() if runner is not None}

    def call(self, name: str, action: Callable[[EngineProcess], Any]) -> Any:
        """The result of `action` on an engine; None where the engine fails or has failed before."""
        if name not in self.engines:
            return None
        try:
            return action(self.engines[name])
        except ChildError as error:
            if name == PLAIN:
                raise
            self.failed[name] = str(error)
            del self.engines[name]
            return None


def compared(fleet: Fleet, options: Options, batch: int, max_draftings: int) -> list[dict[str, Any]]:
    """Rows of one batch size: the first `max_draftings` ways to draft against plain vLLM."""
    turn, names = options.turn(batch), [PLAIN, *fleet.drafting[:max_draftings]]
    for name in names:  # the first step of a new batch size costs extra time, which must not count
        fleet.call(name, lambda engine: engine.take(replace(turn, prompts=batch, tokens=WARM_UP_TOKENS)))
    taken: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for number in range(options.rounds):
        # An engine may run slower or faster after another one, so the order alternates.
        for name in names if number % 2 == 0 else reversed(names):
            taken[name].append(fleet.call(name, lambda engine: engine.take(turn)))
            fleet.bar.update()
    rows = []
    for name in names[1:]:
        timed = None
        if options.device == "cpu":
            timed = fleet.call(name, lambda engine: engine.take(replace(turn, phases=True)))
        if name in fleet.engines:
            figures = judge(taken[PLAIN], taken[name], options.drafting[name].beam_length, timed)
            rows.append({"drafter": name, "batch": batch, **limits(options, name, batch), **figures})
    return rows


def limits(options: Options, way: str, batch: int) -> dict[str, Any]:
    """Nodes per request, and the efficiency that a row would have if only reading bytes took time."""
    drafting = options.drafting[way]
    nodes = options.nodes(batch, drafting)
    if nodes == 0:
        return {"nodes": 0, "efficiency_ceiling": None}
    layout = Layout(drafting.drafter_quantization is not None, drafting.project_embedding)
    work = Workload(
        replace(drafting, num_speculative_tokens=nodes),
        batch,
        context=options.prompt_tokens + options.new_tokens // 2,
        dtype=options.dtype,
    )
    shape, config = find_shape(str(options.target)), drafter_config(options.drafter_of(way))
    return {"nodes": nodes, "efficiency_ceiling": efficiency_ceiling(shape, work, round_reads(config, work, layout))}


def make_prompts(options: Options) -> list[list[int]]:
    """Token ids of as many held-out prompts as the largest turn needs.

    Raises:
        ValueError: There are too few chat prompts, or they cannot be read.
    """
    count = max(options.turn(batch).prompts for batch in options.batches)
    if options.chat is not None:
        return first_turns(Reader.of(options.target, None), options.chat, count, max_tokens=options.prompt_tokens)
    texts = held_out_prompts(count, seed=1, max_chars=8 * options.prompt_tokens)
    return tokenized(texts, AutoTokenizer.from_pretrained(options.target), max_tokens=options.prompt_tokens)


def _engine(
    kind: EngineKind, drafting: DraftingConfig | None, options: Options, prompts: list[list[int]]
) -> EngineProcess:
    engine = options.engine(drafting)
    job = Job(kind.name, str(options.target), kind.speculative, engine, prompts, options.new_tokens, kind.env)
    stem = "".join(letter if letter.isalnum() else "-" for letter in kind.name.lower())
    return EngineProcess(job, options.logs / f"{stem}.log")


def measure(options: Options, console: Console) -> cli.Report:
    return run(options)


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run_benchmark(
        MODULE,
        argv,
        parse_args,
        measure,
        print_report,
        passed=lambda report: not report["failed"],
        record_failed=False,
    )


if __name__ == "__main__":
    sys.exit(main())
