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
from dataclasses import asdict, dataclass, replace
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
from benchmarks.speedup.engine import EngineProcess, Job, Turn
from redrafter_vllm.config import QUANTIZATIONS, DraftingConfig
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
    batches: tuple[int, ...] = (1,)
    rounds: int = 5
    device: str = "cpu"
    eager: bool = False
    out: Path = RESULTS

    def __post_init__(self) -> None:
        for name in ("prompts", "prompt_tokens", "rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not self.batches or min(self.batches) < 1:
            raise ValueError(f"batches must be positive, not {list(self.batches)}")
        if self.new_tokens < 2:
            raise ValueError(f"new_tokens must be at least 2, not {self.new_tokens}: the first comes with the prompt")

    def turn(self, batch: int) -> Turn:
        """As many full batches as hold `prompts` prompts."""
        return Turn(prompts=batch * -(-self.prompts // batch), batch=batch)

    @property
    def engine(self) -> dict[str, Any]:
        return {
            "dtype": self.dtype,
            "max_model_len": self.prompt_tokens + self.new_tokens,
            "max_num_seqs": max(self.batches),
            "enforce_eager": self.eager,
            "kv_cache_memory_bytes": 1 << 30,
            "disable_log_stats": False,
            "skip_tokenizer_init": True,
        }


def held_out_prompts(options: Options) -> list[list[int]]:
    """From files that the small target was not trained on."""
    tokenizer = AutoTokenizer.from_pretrained(options.target)
    count = max(options.turn(batch).prompts for batch in options.batches)
    texts = extract_prompts(split(load_corpus())[1], count, seed=1, max_chars=8 * options.prompt_tokens)
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
        runners = {kind.name: engine.wait_until_ready() for kind, engine in zip(kinds, engines, strict=True)}
        with tqdm(total=2 * options.rounds * len(options.batches), desc="turns", unit="turn") as bar:
            results = [compared(engines, options, batch, bar) for batch in options.batches]
    return {
        "config": {key: str(value) for key, value in asdict(options).items() if key != "out"},
        "runners": runners,
        "results": results,
    }


def compared(engines: Sequence[EngineProcess], options: Options, batch: int, bar: tqdm) -> dict[str, Any]:
    """Plain vLLM and ours at one batch size."""
    turn = options.turn(batch)
    taken: list[list[dict[str, Any]]] = [[] for _ in engines]
    for number in range(options.rounds):
        # Whoever goes second finds the machine as the first has left it, so the order alternates.
        for index in (0, 1) if number % 2 == 0 else (1, 0):
            taken[index].append(engines[index].take(turn))
            bar.update()
    timed = engines[1].take(replace(turn, phases=True)) if options.device == "cpu" else None
    return {"batch": batch} | judge(taken[0], taken[1], options.drafting.beam_length, timed)


def start(kind: EngineKind, options: Options, prompts: list[list[int]]) -> EngineProcess:
    job = Job(
        kind.name,
        str(options.target),
        kind.speculative,
        options.engine,
        prompts,
        options.new_tokens,
        kind.env,
    )
    return EngineProcess(job, ROOT / "build" / "speedup" / f"{kind.name.lower().replace(' ', '-')}.log")


def judge(
    plain: Sequence[dict[str, Any]], ours: Sequence[dict[str, Any]], beam_length: int, timed: dict[str, Any] | None
) -> dict[str, Any]:
    """Figures from the turns' raw counts. Speed is in tokens, as in less than fp32 the texts may differ, and end."""
    speeds = [[_emitted(turn) / turn["seconds"] for turn in engine] for engine in (plain, ours)]
    speedup = statistics.median(speeds[1]) / statistics.median(speeds[0])
    per_step = tokens_per_step(ours[0]["steps"])
    same = compare(plain[0]["tokens"], ours[0]["tokens"])
    figures: dict[str, Any] = {
        "tokens_per_second": {"plain": speeds[0], "redrafter": speeds[1]},
        "speedup": speedup,
        "speedup_by_round": [b / a for a, b in zip(*speeds, strict=True)],
        "tokens_per_step": per_step,
        "efficiency": speedup / per_step,
        "acceptance_by_depth": acceptance_by_depth(DraftCounters.from_dict(ours[0]["counters"]), beam_length),
        "same_requests": same.same_requests,
        "requests": same.requests,
    }
    if timed is not None:
        figures["milliseconds_per_step"] = {name: 1e3 * value for name, value in timed["phases"].items()}
    return figures


def _emitted(turn: dict[str, Any]) -> int:
    return sum(map(len, turn["tokens"]))


def print_report(report: dict[str, Any], console: Console) -> None:
    table = Table(title="LLM.generate, greedy, held-out prompts; medians of tokens per second", title_justify="left")
    for column in ("batch", "plain", "ReDrafter", "speed-up", "by round", "tokens/step", "efficiency", "same texts"):
        table.add_column(column, justify="right")
    for row in report["results"]:
        table.add_row(
            str(row["batch"]),
            *(f"{statistics.median(speeds):.1f}" for speeds in row["tokens_per_second"].values()),
            f"{row['speedup']:.2f}",
            " ".join(f"{ratio:.2f}" for ratio in row["speedup_by_round"]),
            f"{row['tokens_per_step']:.2f}",
            f"{row['efficiency']:.2f}",
            f"{row['same_requests']} of {row['requests']}",
        )
    console.print(table)
    for row in report["results"]:
        if "milliseconds_per_step" in row:
            print_phases(row, console)


def print_phases(row: dict[str, Any], console: Console) -> None:
    phases = Table(title=f"a decode step of ReDrafter, batch {row['batch']}", title_justify="left")
    phases.add_column("phase")
    phases.add_column("ms", justify="right")
    for name, value in sorted(row["milliseconds_per_step"].items(), key=lambda item: -item[1]):
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
    parser.add_argument("--drafter-quantization", choices=QUANTIZATIONS, help="the drafter in one byte a number")
    parser.add_argument("--dtype", default="bfloat16", help="of weights and cache")
    parser.add_argument("--prompts", type=int, default=8, help="prompts from files held out of all training, at least")
    parser.add_argument("--prompt-tokens", type=int, default=128, help="longest prompt")
    parser.add_argument("--new-tokens", type=int, default=64, help="tokens that each prompt is continued by")
    parser.add_argument("--batch", type=int, nargs="+", default=[1], help="requests at a time; a row for each number")
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
            drafting=DraftingConfig(
                args.beam_width, args.beam_length, args.nodes, drafter_quantization=args.drafter_quantization
            ),
            dtype=args.dtype,
            prompts=args.prompts,
            prompt_tokens=args.prompt_tokens,
            new_tokens=args.new_tokens,
            batches=tuple(args.batch),
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
