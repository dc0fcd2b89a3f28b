# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks.serving.speedup --target big/`: how much faster is `LLM.generate` with ReDrafter, and what costs time?

Engines live side by side, each in a process of its own, and take turns on the same held-out prompts: vLLM as its users
run it (on a CPU: runner V1, native kernels, without anything of this project's), and vLLM with ReDrafter. The figure is
the ratio of the turns' median times. On a CPU a last turn, which does not count, times the phases of a decode step.
"""

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import Any

from rich.console import Console
from tqdm import tqdm
from transformers import AutoTokenizer

from benchmarks.demo.offline import EngineKind, as_users_run_it, with_redrafter
from benchmarks.engine_process import ChildError
from benchmarks.models.roofline import Layout, Workload, efficiency_ceiling, round_reads
from benchmarks.models.shapes import drafter_config, find_shape
from benchmarks.record import record
from benchmarks.serving.speedup.engine import EngineProcess, Job
from benchmarks.serving.speedup.options import Options, parse_args
from benchmarks.serving.speedup.report import judge, print_report
from redrafter_training.data.python_corpus import extract_prompts, load_corpus, split
from redrafter_vllm.config import DraftingConfig

PLAIN = "vLLM as installed"
WARM_UP_TOKENS = 8

Report = dict[str, Any]


def run(options: Options, keep: Callable[[Report], None] = lambda report: None) -> Report:
    """The report; `keep` gets it whenever a batch size has been measured."""
    config = {key: str(value) for key, value in asdict(options).items() if key not in ("out", "logs")}
    report: Report = {"config": config, "runners": {}, "failed": {}, "results": []}
    turns = options.rounds * (2 * len(options.batches) + len(options.drafting) - 1)
    with ExitStack() as stack, tqdm(total=turns, desc="turns", unit="turn") as bar:
        fleet = Fleet(options, stack, report["failed"], bar)
        report["runners"] = fleet.start()
        for number, batch in enumerate(options.batches):
            report["results"] += compared(fleet, options, batch, None if number == 0 else 1)
            keep(report)
    return report


class Fleet:
    """Engines by name. One with ReDrafter that fails is gone, and why is kept; without plain vLLM nothing can go on."""

    def __init__(self, options: Options, stack: ExitStack, failed: dict[str, str], bar: tqdm) -> None:
        self.failed, self.bar, self.limit = failed, bar, options.start_seconds
        prompts = held_out_prompts(options)
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
        """The runner of each."""
        found = {name: self.ask(name, lambda engine: engine.wait_until_ready(self.limit)) for name in [*self.engines]}
        return {name: runner for name, runner in found.items() if runner is not None}

    def ask(self, name: str, question: Callable[[EngineProcess], Any]) -> Any:
        """None where the engine fails, or has failed."""
        if name not in self.engines:
            return None
        try:
            return question(self.engines[name])
        except ChildError as error:
            if name == PLAIN:
                raise
            self.failed[name] = str(error)
            del self.engines[name]
            return None


def compared(fleet: Fleet, options: Options, batch: int, max_ways: int | None) -> list[dict[str, Any]]:
    """Plain vLLM and the first `max_ways` ways to draft at one batch size."""
    turn, names = options.turn(batch), [PLAIN, *fleet.drafting[:max_ways]]
    for name in names:  # what the first step of a batch this large costs belongs to no turn
        fleet.ask(name, lambda engine: engine.take(replace(turn, prompts=batch, tokens=WARM_UP_TOKENS)))
    taken: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for number in range(options.rounds):
        # Whoever goes later finds the machine as others have left it, so the order alternates.
        for name in names if number % 2 == 0 else reversed(names):
            taken[name].append(fleet.ask(name, lambda engine: engine.take(turn)))
            fleet.bar.update()
    rows = []
    for name in names[1:]:
        timed = None
        if options.device == "cpu":
            timed = fleet.ask(name, lambda engine: engine.take(replace(turn, phases=True)))
        if name in fleet.engines:
            figures = judge(taken[PLAIN], taken[name], options.drafting[name].beam_length, timed)
            rows.append({"drafter": name, "batch": batch, **limits(options, name, batch), **figures})
    return rows


def limits(options: Options, way: str, batch: int) -> dict[str, Any]:
    """A row's nodes per request, and the efficiency that it would have if bytes were all that cost time."""
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


def held_out_prompts(options: Options) -> list[list[int]]:
    """From files that the small target was not trained on."""
    tokenizer = AutoTokenizer.from_pretrained(options.target)
    count = max(options.turn(batch).prompts for batch in options.batches)
    texts = extract_prompts(split(load_corpus())[1], count, seed=1, max_chars=8 * options.prompt_tokens)
    return [list(tokenizer(text)["input_ids"])[: options.prompt_tokens] for text in texts]


def _engine(
    kind: EngineKind, drafting: DraftingConfig | None, options: Options, prompts: list[list[int]]
) -> EngineProcess:
    engine = options.engine(drafting)
    job = Job(kind.name, str(options.target), kind.speculative, engine, prompts, options.new_tokens, kind.env)
    stem = "".join(letter if letter.isalnum() else "-" for letter in kind.name.lower())
    return EngineProcess(job, options.logs / f"{stem}.log")


def main(argv: Sequence[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    options, console = parse_args(argv), Console()
    report = run(options)
    print_report(report, console)
    if report["failed"]:
        sys.exit(1)
    console.print(record("speedup", argv, report, options.out, options.device))


if __name__ == "__main__":
    main()
