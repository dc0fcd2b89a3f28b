# SPDX-License-Identifier: Apache-2.0
"""Tokens per step as training simulates them and as vLLM counts them.

`python -m benchmarks.serving.tokens_per_step --target DIR` takes the same held-out prompts for both, greedily, in float32, at
each number of beams. Served figures come from vLLM's own speculative-decoding counters. They are not the same number by
construction: a request's last verification counts whole in vLLM, and only as far as the request goes in the simulation.
"""

import argparse
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
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.acceptance import DraftCounters, acceptance_by_depth
from benchmarks.compare import compare
from benchmarks.demo.offline import run_engine, with_redrafter
from benchmarks.demo.options import ROOT
from benchmarks.demo.workload import Workload
from benchmarks.record import RESULTS, record
from redrafter_training.run.evaluation import held_out_texts
from redrafter_training.target.model import TargetModel
from redrafter_training.trainer.acceptance import Acceptance, Drafting, measure
from redrafter_vllm.checkpoint.locate import resolve_drafter
from redrafter_vllm.config import QUANTIZATIONS
from redrafter_vllm.model.drafter import Drafter
from redrafter_vllm.model.interface import DrafterInterface
from redrafter_vllm.model.packed import PackedDrafter
from redrafter_vllm.model.quantization import rounding_linear
from redrafter_vllm.utils.paths import user_path

AGREEMENT = 0.03


@dataclass(frozen=True)
class Options:
    """What is measured."""

    target: Path
    drafter: Path
    beam_widths: tuple[int, ...] = (1, 2, 4, 8)
    beam_length: int = 4
    prompts: int = 64
    new_tokens: int = 128
    out: Path = RESULTS
    drafter_quantization: str | None = None

    @property
    def draftings(self) -> list[Drafting]:
        """With room for all nodes that the beams hold."""
        return [Drafting(width, self.beam_length, width * self.beam_length) for width in self.beam_widths]


@dataclass(frozen=True)
class Served:
    """vLLM's account of the same texts."""

    tokens_per_step: float
    acceptance_by_depth: list[float]
    verifications: int
    same_text: bool  # as the simulation walked along


def served(options: Options, drafting: Drafting, texts: Sequence[tuple[torch.Tensor, int]], console: Console) -> Served:
    """Continue the prompts by vLLM with the drafter."""
    prompts = [text[:start].tolist() for text, start in texts]
    workload = Workload([], prompts, options.new_tokens, temperature=0.8)
    speculative: dict[str, Any] = {
        "method": "redrafter",
        "model": str(options.drafter),
        "beam_width": drafting.beam_width,
        "beam_length": drafting.beam_length,
        "num_speculative_tokens": drafting.max_nodes,
        "drafter_quantization": options.drafter_quantization,
    }
    folder = ROOT / "build" / "tokens-per-step" / f"{drafting.beam_width}x{drafting.beam_length}"
    run = run_engine(with_redrafter(speculative), options.target, workload, folder, console).greedy
    expected = [text[start:].tolist() for text, start in texts]
    return Served(
        counted_tokens_per_step(run.counters),
        acceptance_by_depth(run.counters, drafting.beam_length),
        run.counters.verifications,
        compare(expected, run.tokens).identical,
    )


def counted_tokens_per_step(counters: DraftCounters) -> float:
    """Accepted drafts per verification, and the one token that each adds.

    Raises:
        ValueError: nothing was verified.
    """
    if counters.verifications < 1:
        raise ValueError("vLLM verified no draft")
    return 1 + sum(counters.accepted_at_least) / counters.verifications


def difference(simulated: Acceptance, counted: Served) -> float:
    """Of the simulated figure from the served one, as a part of the latter."""
    return simulated.tokens_per_step / counted.tokens_per_step - 1


def run(options: Options, console: Console) -> dict[str, Any]:
    """The report."""
    target = TargetModel(AutoModelForCausalLM.from_pretrained(options.target, dtype=torch.float32))
    stored = Drafter.from_pretrained(options.drafter)
    drafter: DrafterInterface = stored
    if options.drafter_quantization is not None:
        drafter = PackedDrafter(stored, partial(rounding_linear, options.drafter_quantization))
    tokenizer = AutoTokenizer.from_pretrained(options.target)
    texts = held_out_texts(target, tokenizer, prompts=options.prompts, new_tokens=options.new_tokens, seed=1)
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
        "prompts": options.prompts,
        "new_tokens": options.new_tokens,
        "drafter_quantization": options.drafter_quantization,
        "results": rows,
    }


def print_table(report: dict[str, Any], console: Console) -> None:
    table = Table(title="tokens per step, greedy, held-out prompts", title_justify="left")
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


def agreed(report: dict[str, Any]) -> bool:
    """Whether no figure is further from the other than `AGREEMENT`, on the same texts."""
    return all(row["served"]["same_text"] and abs(row["difference"]) <= AGREEMENT for row in report["results"])


def parse_args(argv: Sequence[str]) -> Options:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving.tokens_per_step",
        description="Tokens per step as training simulates them and as vLLM counts them when serving.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--target", type=user_path, required=True, help="folder of the target")
    parser.add_argument("--drafter", help="the drafter's folder (None: where serving finds it)")
    parser.add_argument("--beam-width", type=int, nargs="+", default=[1, 2, 4, 8], help="numbers of beams, a row each")
    parser.add_argument("--beam-length", type=int, default=4, help="drafted tokens per beam, the root not counted")
    parser.add_argument("--prompts", type=int, default=64, help="prompts from files held out of all training")
    parser.add_argument("--new-tokens", type=int, default=128, help="tokens that each prompt is continued by")
    parser.add_argument("--drafter-quantization", choices=QUANTIZATIONS, help="as the serving option")
    parser.add_argument("--out", type=user_path, default=RESULTS, help="folder for the JSON file")
    args = parser.parse_args(argv)
    drafter = resolve_drafter(args.drafter, str(args.target))
    return Options(
        target=args.target,
        drafter=drafter,
        beam_widths=tuple(args.beam_width),
        beam_length=args.beam_length,
        prompts=args.prompts,
        new_tokens=args.new_tokens,
        out=args.out,
        drafter_quantization=args.drafter_quantization,
    )


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    options, console = parse_args(argv), Console()
    report = run(options, console)
    file = record("tokens_per_step", argv, report, options.out)
    print_table(report, console)
    console.print(file)
    return 0 if agreed(report) else 1


if __name__ == "__main__":
    sys.exit(main())
