# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks.speedup --target big/`: how much faster is `LLM.generate` with ReDrafter, and what costs time?

Two engines live side by side, each in a process of its own, and take turns on the same held-out prompts: vLLM as its
users run it (on a CPU: runner V1, native kernels, without anything of this project's), and vLLM with ReDrafter. The
figure is the ratio of the turns' median times. A last turn, which does not count, times the phases of a decode step.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from tqdm import tqdm
from transformers import AutoTokenizer

from benchmarks.demo.acceptance import DraftCounters, acceptance_by_depth, tokens_per_step
from benchmarks.demo.compare import compare
from benchmarks.demo.offline import EngineKind, as_users_run_it, with_redrafter
from benchmarks.demo.options import ROOT
from benchmarks.record import RESULTS, record
from benchmarks.speedup.engine import EngineProcess, Job
from redrafter_vllm.config import DraftingConfig
from redrafter_vllm.resolve import resolve_drafter
from training.corpus import extract_prompts, load_corpus, split


@dataclass(frozen=True)
class Options:
    """What is measured."""

    target: Path
    drafter: Path
    drafting: DraftingConfig
    dtype: str = "bfloat16"
    prompts: int = 8
    prompt_tokens: int = 128
    new_tokens: int = 64
    batch: int = 1
    rounds: int = 5
    device: str = "cpu"
    eager: bool = False
    out: Path = RESULTS

    def __post_init__(self) -> None:
        for name in ("prompts", "prompt_tokens", "batch", "rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.new_tokens < 2:
            raise ValueError(f"new_tokens must be at least 2, not {self.new_tokens}: the first comes with the prompt")

    @property
    def engine(self) -> dict[str, Any]:
        return {
            "dtype": self.dtype,
            "max_model_len": self.prompt_tokens + self.new_tokens,
            "max_num_seqs": self.batch,
            "enforce_eager": self.eager,
            "kv_cache_memory_bytes": 1 << 30,
            "disable_log_stats": False,
            "skip_tokenizer_init": True,
        }


def held_out_prompts(options: Options) -> list[list[int]]:
    """From files that the small target was not trained on."""
    tokenizer = AutoTokenizer.from_pretrained(options.target)
    texts = extract_prompts(split(load_corpus())[1], options.prompts, seed=1, max_chars=8 * options.prompt_tokens)
    return [list(tokenizer(text)["input_ids"])[: options.prompt_tokens] for text in texts]


def run(options: Options) -> dict[str, Any]:
    """The report."""
    prompts = held_out_prompts(options)
    drafting = {name: value for name, value in asdict(options.drafting).items() if value is not None}
    kinds = [
        as_users_run_it(has_gpu=options.device != "cpu"),
        with_redrafter({"method": "redrafter", "model": str(options.drafter), **drafting}),
    ]
    with ExitStack() as stack:
        engines = [stack.enter_context(start(kind, options, prompts)) for kind in kinds]
        runners = [engine.wait_until_ready() for engine in engines]
        turns: list[list[dict[str, Any]]] = [[] for _ in engines]
        for number in tqdm(range(options.rounds), desc="rounds", unit="round"):
            # Whoever goes second finds the machine as the first has left it, so the order alternates.
            for index in (0, 1) if number % 2 == 0 else (1, 0):
                turns[index].append(engines[index].turn())
        timed = engines[1].turn(phases=True) if options.device == "cpu" else None
    return judge(options, kinds, runners, turns, timed)


def start(kind: EngineKind, options: Options, prompts: list[list[int]]) -> EngineProcess:
    job = Job(
        kind.name,
        str(options.target),
        kind.speculative,
        options.engine,
        prompts,
        options.new_tokens,
        options.batch,
        kind.env,
    )
    return EngineProcess(job, ROOT / "build" / "speedup" / f"{kind.name.lower().replace(' ', '-')}.log")


def judge(
    options: Options,
    kinds: Sequence[EngineKind],
    runners: Sequence[str],
    turns: Sequence[Sequence[dict[str, Any]]],
    timed: dict[str, Any] | None,
) -> dict[str, Any]:
    """Figures from the turns' raw counts."""
    seconds = [[turn["seconds"] for turn in engine] for engine in turns]
    medians = [statistics.median(engine) for engine in seconds]
    emitted = sum(map(len, turns[1][0]["tokens"]))
    per_step = tokens_per_step(turns[1][0]["steps"])
    speedup = medians[0] / medians[1]
    counters = DraftCounters.from_dict(turns[1][0]["counters"])
    same = compare(turns[0][0]["tokens"], turns[1][0]["tokens"])
    report: dict[str, Any] = {
        "config": {key: str(value) for key, value in asdict(options).items() if key != "out"},
        "engines": {
            kind.name: {"runner": runner, "seconds": each, "median": median, "tokens_per_second": emitted / median}
            for kind, runner, each, median in zip(kinds, runners, seconds, medians, strict=True)
        },
        "speedup": speedup,
        "speedup_by_round": [plain / ours for plain, ours in zip(*seconds, strict=True)],
        "tokens_per_step": per_step,
        "efficiency": speedup / per_step,
        "acceptance_by_depth": acceptance_by_depth(counters, options.drafting.beam_length),
        "same_requests": same.same_requests,
        "requests": same.requests,
    }
    if timed is not None:
        report["milliseconds_per_step"] = {name: 1e3 * value for name, value in timed["phases"].items()}
    return report


def print_report(report: dict[str, Any], console: Console) -> None:
    table = Table(title="LLM.generate, greedy, held-out prompts", title_justify="left")
    for column in ("engine", "runner", "median s", "tokens/s"):
        table.add_column(column)
    for name, engine in report["engines"].items():
        table.add_row(name, engine["runner"], f"{engine['median']:.2f}", f"{engine['tokens_per_second']:.1f}")
    console.print(table)
    rounds = ", ".join(f"{ratio:.2f}" for ratio in report["speedup_by_round"])
    console.print(
        f"{report['speedup']:.2f} times as fast (rounds: {rounds}); {report['tokens_per_step']:.2f} tokens per step; "
        f"{report['same_requests']} of {report['requests']} requests with the same tokens"
    )
    if "milliseconds_per_step" in report:
        phases = Table(title="a decode step of ReDrafter", title_justify="left")
        phases.add_column("phase")
        phases.add_column("ms", justify="right")
        for name, value in sorted(report["milliseconds_per_step"].items(), key=lambda item: -item[1]):
            phases.add_row(name, f"{value:.2f}")
        console.print(phases)


def parse_args(argv: Sequence[str]) -> Options:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speedup",
        description="LLM.generate with ReDrafter against vLLM as its users run it, in turns.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--target", type=Path, required=True, help="folder of the target; see benchmarks.inflate")
    parser.add_argument("--drafter", help="the drafter's folder (None: where serving finds it)")
    parser.add_argument("--beam-width", type=int, default=4, help="beams")
    parser.add_argument("--beam-length", type=int, default=4, help="drafted tokens per beam, the root not counted")
    parser.add_argument("--nodes", type=int, default=0, help="node slots of the draft tree (0: as serving chooses)")
    parser.add_argument("--dtype", default="bfloat16", help="of weights and cache")
    parser.add_argument("--prompts", type=int, default=8, help="prompts from files held out of all training")
    parser.add_argument("--prompt-tokens", type=int, default=128, help="longest prompt")
    parser.add_argument("--new-tokens", type=int, default=64, help="tokens that each prompt is continued by")
    parser.add_argument("--batch", type=int, default=1, help="requests at a time")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each engine")
    parser.add_argument(
        "--device", default="cpu", help="cpu or cuda: which engines are compared, and the record's name"
    )
    parser.add_argument(
        "--eager", action="store_true", help="keep vLLM from compiling the model and capturing CUDA graphs"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the JSON file")
    args = parser.parse_args(argv)
    try:
        return Options(
            target=args.target,
            drafter=resolve_drafter(args.drafter, str(args.target)),
            drafting=DraftingConfig(args.beam_width, args.beam_length, args.nodes),
            dtype=args.dtype,
            prompts=args.prompts,
            prompt_tokens=args.prompt_tokens,
            new_tokens=args.new_tokens,
            batch=args.batch,
            rounds=args.rounds,
            device=args.device,
            eager=args.eager,
            out=args.out,
        )
    except ValueError as error:
        parser.error(str(error))


def main(argv: Sequence[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    options, console = parse_args(argv), Console()
    report = run(options)
    print_report(report, console)
    console.print(record("speedup", argv, report, options.out, options.device))


if __name__ == "__main__":
    main()
