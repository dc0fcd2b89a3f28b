# SPDX-License-Identifier: Apache-2.0
"""What each way of reading fewer drafter bytes costs in acceptance.

`python -m benchmarks.serving.drafter_levers --target DIR`: the target continues the prompts greedily, in float32; then
each variant of the drafter drafts along the same texts, as in `redrafter_training.evaluate`. Trimming keeps the most
frequent tokens of the data; rounding is that of weight-only kernels, computed with torch. Bytes are those of this
drafter.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import AutoTokenizer

from benchmarks import cli
from benchmarks.assets import load_target
from benchmarks.models.roofline import Layout, Workload, baseline_round, round_reads
from benchmarks.serving.texts import add_prompts, parsed_prompts
from redrafter_training.run.trimming import choose_tokens, data_frequencies, trim
from redrafter_training.trainer.acceptance import Drafting, measure
from redrafter_training.trim import WINDOW
from redrafter_vllm.checkpoint.locate import resolve_drafter
from redrafter_vllm.config import DraftingConfig
from redrafter_vllm.model.drafter import Drafter
from redrafter_vllm.model.packed import MakeLinear, PackedDrafter, plain_linear
from redrafter_vllm.model.quantization import CODE_TYPES, rounding_linear
from redrafter_vllm.utils.paths import user_place

MODULE = "benchmarks.serving.drafter_levers"


def products(quantization: str | None) -> MakeLinear:
    return plain_linear if quantization is None else partial(rounding_linear, quantization)


def run(args: argparse.Namespace, console: Console) -> cli.Report:
    """The report; its first row is the drafter as stored."""
    target = load_target(args.target)
    tokenizer = AutoTokenizer.from_pretrained(args.target)
    full = Drafter.from_pretrained(resolve_drafter(args.drafter, str(args.target)))
    frequencies = data_frequencies(args.data, tokenizer, full.config.vocab_size, WINDOW)
    drafters: list[tuple[Drafter, float, Tensor | None]] = [(full, 1.0, None)]
    for size in args.draft_vocab_size or [full.config.output_size // 4]:
        kept = choose_tokens(full, frequencies, size)
        drafters.append((trim(full, kept.tokens), kept.coverage, kept.tokens))
    texts = args.prompts.texts(target, tokenizer, window=WINDOW)
    emitted = torch.cat([text[start:] for text, start in texts])
    drafting = Drafting(args.beam_width, args.beam_length, args.beam_width * args.beam_length)
    work = Workload(DraftingConfig(args.beam_width, args.beam_length))
    baseline = baseline_round(full.config, work).total
    rows: list[dict[str, Any]] = []
    for quantization in (None, *CODE_TYPES):
        layout = Layout(byte_weights=quantization is not None)
        for drafter, coverage, tokens in drafters:
            found = measure(target, PackedDrafter(drafter, products(quantization)), texts, drafting)
            rows.append(
                {
                    "draft_tokens": drafter.config.output_size,
                    "coverage_of_data": coverage,
                    "coverage_of_emitted": 1.0
                    if tokens is None
                    else torch.isin(emitted, tokens).double().mean().item(),
                    "quantization": quantization,
                    **asdict(found),
                    "change": found.tokens_per_step / rows[0]["tokens_per_step"] - 1 if rows else 0.0,
                    "part_of_naive_bytes": round_reads(drafter.config, work, layout).total / baseline,
                }
            )
            console.print(drafter.config.output_size, quantization, f"{found.tokens_per_step:.3f}")
    return {
        "drafting": asdict(drafting),
        **args.prompts.described,
        "data": args.data,
        "results": rows,
    }


def print_table(report: cli.Report, console: Console) -> None:
    drafting = report["drafting"]
    title = f"{drafting['beam_width']} beams of {drafting['beam_length']}, prompts: {report['prompts']}"
    table = Table(title=title, title_justify="left")
    for column in (
        "draft tokens",
        "weights",
        "of emitted",
        "tokens per step",
        "change",
        "bytes, relative",
        "by depth",
    ):
        table.add_column(column, no_wrap=True)
    for row in report["results"]:
        table.add_row(
            f"{row['draft_tokens']:,}",
            row["quantization"] or "as stored",
            f"{row['coverage_of_emitted']:.1%}",
            f"{row['tokens_per_step']:.2f}",
            f"{row['change']:+.1%}",
            f"{row['part_of_naive_bytes']:.2f}",
            "  ".join(f"{part:.2f}" for part in row["acceptance_by_depth"]),
        )
    console.print(table)


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = cli.make_parser(MODULE, "What each way of reading fewer drafter bytes costs in acceptance.")
    cli.add_target(parser)
    cli.add_drafter(parser)
    parser.add_argument(
        "--data",
        type=user_place,
        default="stdlib",
        help="data whose most frequent tokens are kept, as for redrafter_training.trim",
    )
    parser.add_argument(
        "--draft-vocab-size", type=int, nargs="+", help="tokens to keep, one row per number (None: a quarter)"
    )
    cli.add_beams(parser)
    add_prompts(parser, prompts=64, new_tokens=128)
    cli.add_out(parser)
    args = parser.parse_args(argv)
    args.prompts = parsed_prompts(args, parser)
    return args


def main(argv: Sequence[str] | None = None) -> int:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    return cli.run_benchmark(
        MODULE, argv, parse_args, run, print_table, name=lambda args: args.prompts.record_name("drafter-levers")
    )


if __name__ == "__main__":
    sys.exit(main())
