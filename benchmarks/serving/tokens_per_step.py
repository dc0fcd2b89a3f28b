# SPDX-License-Identifier: Apache-2.0
"""Tokens per step as training simulates them and as vLLM counts them.

`python -m benchmarks.serving.tokens_per_step --target DIR` continues the same prompts in both ways, greedily, in
float32, for each number of beams. Served figures come from vLLM's own speculative-decoding counters. The two may
differ a little: vLLM counts all accepted drafts of a request's last verification, the simulation only emitted ones.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer

from benchmarks import cli
from benchmarks.assets import BUILD, load_target
from benchmarks.engines.offline import MAX_MODEL_LEN, Workload, run_engine
from benchmarks.record import RESULTS
from benchmarks.serving.texts import Prompts, add_prompts, parsed_prompts
from redrafter_training.trainer.acceptance import Acceptance, Drafting, measure
from redrafter_vllm.bench.acceptance import DraftCounters, acceptance_by_depth
from redrafter_vllm.bench.compare import compare
from redrafter_vllm.bench.kinds import with_redrafter
from redrafter_vllm.checkpoint.locate import resolve_drafter
from redrafter_vllm.config import QUANTIZATIONS
from redrafter_vllm.model.drafter import Drafter
from redrafter_vllm.model.interface import DrafterInterface
from redrafter_vllm.model.packed import PackedDrafter
from redrafter_vllm.model.quantization import rounding_linear

MODULE = "benchmarks.serving.tokens_per_step"
AGREEMENT = 0.03  # largest relative difference of the two figures


@dataclass(frozen=True)
class Options:
    """What is measured."""

    target: Path
    drafter: Path
    prompts: Prompts
    beam_widths: tuple[int, ...] = (1, 2, 4, 8)
    beam_length: int = 4
    out: Path = RESULTS
    drafter_quantization: str | None = None

    @property
    def draftings(self) -> list[Drafting]:
        """One per number of beams, with a node budget for all their nodes."""
        return [Drafting(width, self.beam_length, width * self.beam_length) for width in self.beam_widths]

    @property
    def window(self) -> int:
        """Tokens of a text behind which the engine has room for two trees: it cuts drafts that exceed its length."""
        return MAX_MODEL_LEN - 2 * (1 + max(drafting.max_nodes for drafting in self.draftings))


@dataclass(frozen=True)
class Served:
    """What vLLM counted for the same texts."""

    tokens_per_step: float
    acceptance_by_depth: list[float]
    verifications: int
    same_text: bool  # as the simulation's


def served(options: Options, drafting: Drafting, texts: Sequence[tuple[torch.Tensor, int]], console: Console) -> Served:
    """Continue the prompts with vLLM and the drafter."""
    prompts = [text[:start].tolist() for text, start in texts]
    workload = Workload([], prompts, options.prompts.new_tokens, temperature=0.8)
    speculative: dict[str, Any] = {
        "method": "redrafter",
        "model": str(options.drafter),
        "beam_width": drafting.beam_width,
        "beam_length": drafting.beam_length,
        "num_speculative_tokens": drafting.max_nodes,
        "drafter_quantization": options.drafter_quantization,
        "adaptive": False,  # the simulation's trees are fixed
        "prompt_lookup": drafting.prompt_lookup,
    }
    folder = BUILD / "tokens-per-step" / f"{drafting.beam_width}x{drafting.beam_length}"
    run = run_engine(with_redrafter(speculative), options.target, workload, folder, console).greedy
    expected = [text[start:].tolist() for text, start in texts]
    return Served(
        counted_tokens_per_step(run.counters),
        acceptance_by_depth(run.counters, drafting.beam_length),
        run.counters.verifications,
        compare(expected, run.tokens).identical,
    )


def counted_tokens_per_step(counters: DraftCounters) -> float:
    """Accepted drafts per verification, plus the target's token. Raises ValueError where nothing was verified."""
    if counters.verifications < 1:
        raise ValueError("vLLM verified no draft")
    return 1 + sum(counters.accepted_at_least) / counters.verifications


def difference(simulated: Acceptance, counted: Served) -> float:
    """Relative difference of the simulated tokens per step from the served ones."""
    return simulated.tokens_per_step / counted.tokens_per_step - 1


def run(options: Options, console: Console) -> cli.Report:
    target = load_target(options.target)
    stored = Drafter.from_pretrained(options.drafter)
    drafter: DrafterInterface = stored
    if options.drafter_quantization is not None:
        drafter = PackedDrafter(stored, partial(rounding_linear, options.drafter_quantization))
    tokenizer = AutoTokenizer.from_pretrained(options.target)
    texts = options.prompts.texts(target, tokenizer, window=options.window)
    rows = []
    for drafting in options.draftings:
        simulated = measure(target, drafter, texts, drafting)
        counted = served(options, drafting, texts, console)
        rows.append(
            {
                "drafting": asdict(drafting),
                "simulated": asdict(simulated),
                "served": asdict(counted),
                "difference": difference(simulated, counted),
            }
        )
    return {
        **options.prompts.described,
        "drafter_quantization": options.drafter_quantization,
        "adaptive": False,  # the simulation's trees are fixed
        "prompt_lookup": drafting.prompt_lookup,
        "results": rows,
    }


def print_table(report: cli.Report, console: Console) -> None:
    table = Table(title=f"tokens per step, greedy, prompts: {report['prompts']}", title_justify="left")
    for column in ("beams", "simulated", "served", "difference", "same text", "accepted at depth, served"):
        table.add_column(column)
    for row in report["results"]:
        table.add_row(
            f"{row['drafting']['beam_width']} of {row['drafting']['beam_length']}",
            f"{row['simulated']['tokens_per_step']:.2f}",
            f"{row['served']['tokens_per_step']:.2f}",
            f"{row['difference']:+.1%}",
            "yes" if row["served"]["same_text"] else "NO",
            "  ".join(f"{part:.2f}" for part in row["served"]["acceptance_by_depth"]),
        )
    console.print(table)


def agreed(report: cli.Report) -> bool:
    """Whether all figures differ by at most `AGREEMENT`, on the same texts."""
    return all(row["served"]["same_text"] and abs(row["difference"]) <= AGREEMENT for row in report["results"])


def parse_args(argv: Sequence[str]) -> Options:
    parser = cli.make_parser(MODULE, "Tokens per step as training simulates them and as vLLM counts them when serving.")
    cli.add_target(parser)
    cli.add_drafter(parser)
    parser.add_argument("--beam-width", type=int, nargs="+", default=[1, 2, 4, 8], help="numbers of beams, a row each")
    cli.add_beams(parser, width=False)
    add_prompts(parser, prompts=64, new_tokens=128)
    parser.add_argument("--drafter-quantization", choices=QUANTIZATIONS, help="as the serving option")
    cli.add_out(parser)
    args = parser.parse_args(argv)
    return Options(
        target=args.target,
        drafter=resolve_drafter(args.drafter, str(args.target)),
        beam_widths=tuple(args.beam_width),
        beam_length=args.beam_length,
        prompts=parsed_prompts(args, parser),
        out=args.out,
        drafter_quantization=args.drafter_quantization,
    )


def main(argv: Sequence[str] | None = None) -> int:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    return cli.run_benchmark(
        MODULE,
        argv,
        parse_args,
        run,
        print_table,
        passed=agreed,
        name=lambda options: options.prompts.record_name("tokens-per-step"),
    )


if __name__ == "__main__":
    sys.exit(main())
