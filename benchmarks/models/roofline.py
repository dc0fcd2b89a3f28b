# SPDX-License-Identifier: Apache-2.0
"""Bytes that a decode step has to read, and the time that a memory bandwidth needs for them.

`python -m benchmarks.models.roofline --target DIR --drafter DIR`, or `--target vicuna-7b` without any weights: sizes come
from `config.json` alone.

A drafting round is T steps of the recurrence and the head, each of which has to read its weights again, as no cache
holds them; the context's half of the first linear layer is needed once a round. Batch and beams share weights.
Activations (states, logits) and the draft vocabulary's map are left out, as small. U is counted at the first step, too,
although s_0 = 0. W and U are read in one product as serving packs them, which saves a launch and no bytes; W·E as a
table (`project_embedding`) saves reading W, for a second embedding's memory. "Kept" is what drafting holds in memory.

"Efficiency at most" is the speed-up divided by the tokens per step, if bytes were all that took time: those of a plain
step over those of verification and drafting together.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from math import prod
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.models.shapes import (
    LlamaShape,
    ShapeError,
    as_dict,
    count,
    drafter_config,
    find_shape,
    published_drafter,
)
from redrafter_vllm.checkpoint.config import DrafterConfig, tensor_shapes
from redrafter_vllm.checkpoint.errors import CheckpointError
from redrafter_vllm.config import DraftingConfig
from redrafter_vllm.utils import strict_json
from redrafter_vllm.utils.paths import user_path, user_place

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Workload:
    """What a step is made of. Raises ValueError for what cannot be."""

    drafting: DraftingConfig
    batch: int = 1
    context: int = 512  # tokens in the cache, of each request
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


def naive_round(config: DrafterConfig, work: Workload) -> Reads:
    """A drafting round that reads the whole drafter at every step."""
    steps = work.drafting.beam_length
    weights = count(tensor_shapes(config)) * work.number_bytes
    return Reads({"whole drafter": steps * weights, "embedding rows": _embedding_rows(config, work)})


@dataclass(frozen=True)
class Layout:
    """How serving holds a drafter, beside computing the constant context half once a round.

    `byte_weights`: matrices in one byte a number (FP8 or INT8), and a scale per row. `project_embedding`: W·E is a
    table, so that no step reads W.
    """

    byte_weights: bool = False
    project_embedding: bool = False

    def matrix_bytes(self, shape: tuple[int, ...], work: Workload) -> int:
        """What reading a matrix of `shape` [N, K] takes; scales are of the type that is computed in."""
        if self.byte_weights:
            return prod(shape) + shape[0] * work.number_bytes
        return prod(shape) * work.number_bytes

    def projects(self, config: DrafterConfig) -> bool:
        return self.project_embedding and config.rnn


def round_reads(config: DrafterConfig, work: Workload, layout: Layout) -> Reads:
    """A drafting round as serving makes it, the constant context half computed once."""
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
        # With the context goes the bias. Both halves have the rows' scales to read, where there are any.
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
    """Memory for the drafter's weights and, where it is kept, the table of W·E."""
    table = config.vocab_size * config.hidden_size * work.number_bytes if layout.projects(config) else 0
    return sum(_tensor_bytes(config, work, layout).values()) + table


def target_step(shape: LlamaShape, work: Workload, nodes: int) -> Reads:
    """A target's step over the root and `nodes` drafts of each request; with 0 of them a plain one."""
    tokens = work.batch * (1 + nodes)
    weights = shape.num_parameters
    if not shape.tie_word_embeddings:
        weights -= shape.vocab_size * shape.hidden_size  # of the input embedding, rows alone are read
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
    """The root's at the first step, each beam's at the others."""
    rows = 1 + (work.drafting.beam_length - 1) * work.drafting.beam_width
    return work.batch * rows * config.hidden_size * work.number_bytes


@dataclass(frozen=True)
class Line:
    """One way to draft."""

    name: str
    round_bytes: Reads
    kept: int  # bytes in memory
    part_of_naive: float
    seconds: float
    efficiency: float  # speed-up divided by tokens per step, if nothing but bytes cost anything


def efficiency_ceiling(shape: LlamaShape, work: Workload, reads: Reads) -> float:
    """Speed-up by tokens per step with such a drafting round, if nothing but bytes cost anything: at any bandwidth."""
    verify = target_step(shape, work, work.drafting.num_speculative_tokens)
    return target_step(shape, work, 0).total / (verify.total + reads.total)


def compare(shape: LlamaShape, config: DrafterConfig, work: Workload, what_if: int | None) -> list[Line]:
    """Ways to draft, each on top of the one before; `what_if` is a smaller draft vocabulary to consider."""
    naive = naive_round(config, work)
    plainly = Layout()
    ways = [("whole drafter at every step", config, plainly), ("constant context half", config, plainly)]
    if what_if is not None and what_if < config.output_size:
        config = replace(config, draft_vocab_size=what_if)
        ways.append((f"and {what_if:,} draft tokens", config, plainly))
    if config.rnn:
        ways.append(("and W·E as a table", config, Layout(project_embedding=True)))
    ways.append(("and FP8 or INT8 weights", config, Layout(byte_weights=True, project_embedding=True)))
    rounds = [naive, *(round_reads(config, work, layout) for _, config, layout in ways[1:])]
    return [
        Line(
            name,
            reads,
            kept_bytes(config, work, layout),
            reads.total / naive.total,
            reads.total / work.bandwidth,
            efficiency_ceiling(shape, work, reads),
        )
        for (name, config, layout), reads in zip(ways, rounds, strict=True)
    ]


def report(shape: LlamaShape, config: DrafterConfig, work: Workload, what_if: int | None) -> dict[str, Any]:
    """Everything as JSON."""
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
                "part_of_naive": line.part_of_naive,
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
    for column in ("MB", "ms", "of naive", "efficiency at most", "kept MB"):
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
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.models.roofline",
        description="Bytes that drafting and verification must read, and the time that takes.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--target", "--shape", type=user_place, required=True, help="folder, config.json or name of a shape"
    )
    parser.add_argument(
        "--drafter", type=user_path, help="the drafter's folder (None: the paper's, in the target's size)"
    )
    parser.add_argument("--beam-width", type=int, default=4)
    parser.add_argument("--beam-length", type=int, default=5, help="drafted tokens per beam, the root not counted")
    parser.add_argument("--nodes", type=int, default=0, help="node slots of the tree (0: as serving's default)")
    parser.add_argument("--batch", type=int, default=1, help="requests")
    parser.add_argument("--context", type=int, default=512, help="tokens in each request's cache")
    parser.add_argument("--dtype", choices=list(DTYPE_BYTES), default="bfloat16", help="of weights and cache")
    parser.add_argument("--bandwidth", type=float, default=3.35e12, help="bytes per second")
    parser.add_argument(
        "--draft-vocab-size", type=int, default=8000, help="a trimmed vocabulary to consider; the drafter's if smaller"
    )
    parser.add_argument("--json", type=user_path, help="file for the report")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    args = parse_args(argv)
    try:
        shape = find_shape(args.target)
        config = published_drafter(shape) if args.drafter is None else drafter_config(args.drafter)
        if (config.hidden_size, config.vocab_size) != (shape.hidden_size, shape.vocab_size):
            raise ShapeError(f"{args.drafter} was trained for a target of other sizes than {args.target}.")
        drafting = DraftingConfig(args.beam_width, args.beam_length, args.nodes)
        work = Workload(drafting, args.batch, args.context, args.dtype, args.bandwidth)
        result = report(shape, config, work, args.draft_vocab_size)
    except (ShapeError, CheckpointError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    print_tables(result, Console(width=120))
    if args.json is not None:
        result["command"] = shlex.join(["python", "-m", "benchmarks.models.roofline", *argv])
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(strict_json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
