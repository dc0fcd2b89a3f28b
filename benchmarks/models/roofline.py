# SPDX-License-Identifier: Apache-2.0
"""Bytes that a decode step has to read, and the time that a memory bandwidth needs for them.

`python -m benchmarks.models.roofline --target DIR --drafter DIR`, or `--target vicuna-7b` without any weights: sizes
come from `config.json` alone.

A drafting round is T steps of the recurrence and the head. Each step has to read its weights again, as they fit in no
cache; the context half of the first linear layer is needed once a round. All requests and beams share the weights.
Activations (states, logits) and the map of the draft vocabulary are omitted, as small. U is counted at the first step
too, although s_0 = 0. W and U are read in one product, as serving packs them, which saves a launch but no bytes; W·E
as a table (`project_embedding`) saves reading W and costs the memory of a second embedding. "Kept" is the memory that
drafting holds.

The efficiency is the speed-up divided by the tokens per step. Its maximum assumes that only reading bytes takes time:
it is the bytes of a plain step divided by those of verification and drafting together.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from math import prod
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import cli
from benchmarks.record import command, store
from redrafter_vllm.checkpoint.config import DrafterConfig, tensor_shapes
from redrafter_vllm.config import DraftingConfig
from redrafter_vllm.predict.shapes import (
    LlamaShape,
    ShapeError,
    as_dict,
    count,
    drafter_config,
    find_shape,
    published_drafter,
)
from redrafter_vllm.utils.paths import user_path, user_place

MODULE = "benchmarks.models.roofline"
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Workload:
    """Sizes of a step. Raises ValueError where one is impossible."""

    drafting: DraftingConfig
    batch: int = 1
    context: int = 512  # tokens in the cache of each request
    dtype: str = "bfloat16"
    bandwidth: float = 3.35e12  # bytes per second

    def __post_init__(self) -> None:
        if self.batch < 1 or self.context < 0 or self.bandwidth <= 0:
            raise ValueError(
                f"batch {self.batch}, context {self.context} and bandwidth {self.bandwidth} must be positive"
            )

    @property
    def number_bytes(self) -> int:
        return DTYPE_BYTES[self.dtype]


@dataclass(frozen=True)
class Reads:
    """Bytes read in a round or a step, by purpose."""

    parts: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.parts.values())


def baseline_round(config: DrafterConfig, work: Workload) -> Reads:
    """A drafting round that reads the whole drafter at every step."""
    steps = work.drafting.beam_length
    weights = count(tensor_shapes(config)) * work.number_bytes
    return Reads({"whole drafter": steps * weights, "embedding rows": _embedding_rows(config, work)})


@dataclass(frozen=True)
class Layout:
    """The format in which serving keeps a drafter; the constant context half is computed once a round in each."""

    byte_weights: bool = False  # matrices are 8-bit (FP8 or INT8), with a scale per row
    project_embedding: bool = False  # W·E is a table, so that no step reads W

    def matrix_bytes(self, shape: tuple[int, ...], work: Workload) -> int:
        """Bytes of a matrix of `shape` [N, K]; scales have the type of the activations."""
        if self.byte_weights:
            return prod(shape) + shape[0] * work.number_bytes
        return prod(shape) * work.number_bytes

    def projects(self, config: DrafterConfig) -> bool:
        return self.project_embedding and config.rnn


def round_reads(config: DrafterConfig, work: Workload, layout: Layout) -> Reads:
    """A drafting round as serving computes it, with the constant context half computed once."""
    steps = work.drafting.beam_length
    sizes = _tensor_bytes(config, work, layout)
    if layout.projects(config):
        sizes.pop("rnn_w.weight")
    layers = config.num_draft_layers
    head = sizes.pop(f"lm_head.{layers}.weight")
    recurrent = sum(sizes.pop(name) for name in ("rnn_u.weight", "rnn_u.bias", "rnn_w.weight") if name in sizes)
    half = layout.matrix_bytes((config.first_size, config.hidden_size), work)
    if config.starts_with_output:
        once, head = half, half
    else:
        # The context half includes the bias. Each half reads the scales of the rows, if there are any.
        first = "input_proj" if config.has_input_proj else "lm_head.0.linear"
        once = half + sizes.pop(f"{first}.bias")
        sizes[f"{first}.weight"] = half
    return Reads(
        {
            "context half, once": once,
            "rest of the residual blocks": steps * sum(sizes.values()),
            "recurrence": steps * recurrent,
            "head": steps * head,
            "embedding rows": _embedding_rows(config, work),
        }
    )


def kept_bytes(config: DrafterConfig, work: Workload, layout: Layout) -> int:
    """Memory of the drafter's weights and of the table of W·E, if there is one."""
    table = config.vocab_size * config.hidden_size * work.number_bytes if layout.projects(config) else 0
    return sum(_tensor_bytes(config, work, layout).values()) + table


def target_step(shape: LlamaShape, work: Workload, nodes: int) -> Reads:
    """A target's step over the root and `nodes` drafts of each request; with 0 nodes a plain step."""
    tokens = work.batch * (1 + nodes)
    weights = shape.num_parameters
    if not shape.tie_word_embeddings:
        weights -= shape.vocab_size * shape.hidden_size  # only single rows of the input embedding are read
    per_token = 2 * shape.num_hidden_layers * shape.num_key_value_heads * shape.head_dim
    return Reads(
        {
            "weights": weights * work.number_bytes,
            "embedding rows": tokens * shape.hidden_size * work.number_bytes,
            "cache": work.batch * (work.context + 1 + nodes) * per_token * work.number_bytes,
        }
    )


def _tensor_bytes(config: DrafterConfig, work: Workload, layout: Layout) -> dict[str, int]:
    return {
        name: layout.matrix_bytes(shape, work) if len(shape) == 2 else prod(shape) * work.number_bytes
        for name, shape in tensor_shapes(config).items()
    }


def _embedding_rows(config: DrafterConfig, work: Workload) -> int:
    """One row at the first step, for the root; at the others one for each beam."""
    rows = 1 + (work.drafting.beam_length - 1) * work.drafting.beam_width
    return work.batch * rows * config.hidden_size * work.number_bytes


@dataclass(frozen=True)
class Line:
    """One way to draft."""

    name: str
    round_bytes: Reads
    kept: int  # bytes in memory
    part_of_baseline: float
    seconds: float
    efficiency: float  # speed-up divided by tokens per step, if only bytes take time


def efficiency_ceiling(shape: LlamaShape, work: Workload, reads: Reads) -> float:
    """Speed-up divided by tokens per step, if only reading bytes takes time. It does not depend on the bandwidth."""
    verify = target_step(shape, work, work.drafting.num_speculative_tokens)
    return target_step(shape, work, 0).total / (verify.total + reads.total)


def compare(shape: LlamaShape, config: DrafterConfig, work: Workload, what_if: int | None) -> list[Line]:
    """Ways to draft, each in addition to the one before; `what_if` is a smaller draft vocabulary to consider."""
    baseline = baseline_round(config, work)
    plain = Layout()
    ways = [("whole drafter at every step", config, plain), ("constant context half", config, plain)]
    if what_if is not None and what_if < config.output_size:
        config = replace(config, draft_vocab_size=what_if)
        ways.append((f"and {what_if:,} draft tokens", config, plain))
    if config.rnn:
        ways.append(("and W·E as a table", config, Layout(project_embedding=True)))
    ways.append(("and FP8 or INT8 weights", config, Layout(byte_weights=True, project_embedding=True)))
    rounds = [baseline, *(round_reads(config, work, layout) for _, config, layout in ways[1:])]
    return [
        Line(
            name,
            reads,
            kept_bytes(config, work, layout),
            reads.total / baseline.total,
            reads.total / work.bandwidth,
            efficiency_ceiling(shape, work, reads),
        )
        for (name, config, layout), reads in zip(ways, rounds, strict=True)
    ]


def report(shape: LlamaShape, config: DrafterConfig, work: Workload, what_if: int | None) -> dict[str, Any]:
    """The report, ready for JSON."""
    steps = {
        "plain step": target_step(shape, work, 0),
        "verification step": target_step(shape, work, work.drafting.num_speculative_tokens),
    }
    return {
        "date": date.today().isoformat(),
        "target": as_dict(shape) | {"parameters": shape.num_parameters},
        "drafter": as_dict(config) | {"parameters": count(tensor_shapes(config))},
        "workload": asdict(work),
        "target_steps": {
            name: {"bytes": reads.total, "parts": reads.parts, "seconds": reads.total / work.bandwidth}
            for name, reads in steps.items()
        },
        "drafting_rounds": [
            {
                "way": line.name,
                "bytes": line.round_bytes.total,
                "parts": line.round_bytes.parts,
                "kept_bytes": line.kept,
                "part_of_naive": line.part_of_baseline,
                "seconds": line.seconds,
                "efficiency_ceiling": line.efficiency,
            }
            for line in compare(shape, config, work, what_if)
        ],
    }


def print_tables(result: dict[str, Any], console: Console) -> None:
    work = result["workload"]
    drafting = work["drafting"]
    title = (
        f"bytes to read, batch {work['batch']}, {drafting['beam_width']} beams of {drafting['beam_length']}, "
        f"{drafting['num_speculative_tokens']} nodes, context {work['context']}, {work['dtype']}; times at "
        f"{work['bandwidth'] / 1e12:.2f} TB/s"
    )
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for column in ("MB", "ms", "of first", "max. efficiency", "kept MB"):
        table.add_column(column, justify="right")
    for name, step in result["target_steps"].items():
        table.add_row(f"target: {name}", f"{step['bytes'] / 1e6:,.1f}", f"{step['seconds'] * 1e3:.3f}")
    table.add_section()
    for line in result["drafting_rounds"]:
        table.add_row(
            f"drafting round: {line['way']}",
            f"{line['bytes'] / 1e6:,.1f}",
            f"{line['seconds'] * 1e3:.3f}",
            f"{line['part_of_naive']:.3f}",
            f"{line['efficiency_ceiling']:.3f}",
            f"{line['kept_bytes'] / 1e6:,.1f}",
        )
    console.print(table)


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = cli.make_parser(MODULE, "Bytes that drafting and verification must read, and the time for reading them.")
    parser.add_argument(
        "--target", "--shape", type=user_place, required=True, help="folder, config.json or name of a shape"
    )
    parser.add_argument(
        "--drafter", type=user_path, help="the drafter's folder (None: the paper's, in the target's size)"
    )
    cli.add_beams(parser, length=5)
    parser.add_argument("--nodes", type=int, default=0, help="node slots of the draft tree (0: as serving chooses)")
    parser.add_argument("--batch", type=int, default=1, help="requests")
    parser.add_argument("--context", type=int, default=512, help="tokens in each request's cache")
    parser.add_argument("--dtype", choices=list(DTYPE_BYTES), default="bfloat16", help="of weights and cache")
    parser.add_argument("--bandwidth", type=float, default=3.35e12, help="bytes per second")
    parser.add_argument(
        "--draft-vocab-size",
        type=int,
        default=8000,
        help="a trimmed draft vocabulary to consider, if the drafter's is larger",
    )
    parser.add_argument("--json", type=user_path, help="file for the report")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    return cli.ending(lambda: run(argv))


def run(argv: Sequence[str]) -> int:
    args = parse_args(argv)
    shape = find_shape(args.target)
    config = published_drafter(shape) if args.drafter is None else drafter_config(args.drafter)
    if (config.hidden_size, config.vocab_size) != (shape.hidden_size, shape.vocab_size):
        raise ShapeError(f"{args.drafter} was trained for a target of other sizes than {args.target}.")
    drafting = DraftingConfig(args.beam_width, args.beam_length, args.nodes)
    work = Workload(drafting, args.batch, args.context, args.dtype, args.bandwidth)
    result = report(shape, config, work, args.draft_vocab_size)
    print_tables(result, cli.wide_console())
    if args.json is not None:
        store(args.json, result | {"command": command(MODULE, argv)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
