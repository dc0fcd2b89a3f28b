# SPDX-License-Identifier: Apache-2.0
"""Time of a drafting round by the drafter's format: `python -m benchmarks.serving.drafting_round --shape llama-1b`.

Weights are random: the time of a round does not depend on them. The formats take turns, round by round, so that other
work on the machine affects all of them equally. On a GPU the rounds are eager, while serving replays them as graphs.
Before anything is timed, the logits of each format are compared with those of the drafter as loaded.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from vllm.config import set_current_vllm_config
from vllm.distributed.parallel_state import (
    destroy_distributed_environment,
    destroy_model_parallel,
    init_distributed_environment,
    initialize_model_parallel,
)
from vllm.engine.arg_utils import EngineArgs
from vllm.utils.torch_utils import set_default_torch_dtype

from benchmarks import cli
from benchmarks.assets import ASSET
from benchmarks.models.roofline import DTYPE_BYTES, Layout, Workload, kept_bytes, round_reads
from redrafter_vllm.checkpoint.config import DrafterConfig
from redrafter_vllm.config import QUANTIZATIONS, DraftingConfig, OptionError
from redrafter_vllm.drafting.propose import propose_trees
from redrafter_vllm.integration.frontend.quantization import check_quantization
from redrafter_vllm.integration.worker.drafter_loading import linear_maker
from redrafter_vllm.model.drafter import Drafter
from redrafter_vllm.model.interface import DrafterInterface
from redrafter_vllm.model.packed import PackedDrafter
from redrafter_vllm.predict.shapes import find_shape, published_drafter

MODULE = "benchmarks.serving.drafting_round"
WARM_UP = 2

# In standard deviations of the logits. 8-bit rounding changes each product by 1 % (INT8) or 3 % (FP8), and there are
# four in a row; with the wrong scales or codes a kernel's deviation is near 1.
MAX_DEVIATION = {None: 0.02, "int8": 0.05, "fp8": 0.15}


@contextmanager
def alone_in_vllm(device: str, dtype: torch.dtype) -> Iterator[None]:
    """What vLLM's layers need: a current configuration, of any model, and process groups of this process alone."""
    backend = "nccl" if device == "cuda" else "gloo"
    name = str(dtype).removeprefix("torch.")
    config = EngineArgs(model=str(ASSET), dtype=name, skip_tokenizer_init=True).create_engine_config()
    with (
        tempfile.TemporaryDirectory() as folder,
        set_current_vllm_config(config),
        set_default_torch_dtype(dtype),
        torch.device(device),
    ):
        init_distributed_environment(1, 0, f"file://{folder}/rendezvous", 0, backend)
        initialize_model_parallel()
        try:
            yield
        finally:
            destroy_model_parallel()
            destroy_distributed_environment()


def random_drafter(config: DrafterConfig) -> Drafter:
    """A drafter on the default device, in the default type; its draft vocabulary is spread over the target's."""
    drafter = Drafter(config).eval()
    if config.draft_vocab_size is not None:
        drafter.set_draft_tokens(torch.arange(config.draft_vocab_size) * (config.vocab_size // config.draft_vocab_size))
    return drafter


def ways(drafter: Drafter, dtype: torch.dtype) -> dict[str, tuple[DrafterInterface, Layout, float]]:
    """Drafters by name, with their layout and the deviation of their logits.

    Raises ValueError where the deviation is more than rounding explains.
    """
    found: dict[str, tuple[DrafterInterface, Layout, float]] = {"as loaded": (drafter, Layout(), 0.0)}
    for quantization in (None, *QUANTIZATIONS):
        try:
            check_quantization(quantization, dtype)
        except OptionError:
            continue
        for table in (False, True):
            name = (quantization or "packed") + (", W·E as a table" if table else "")
            packed = PackedDrafter(drafter, linear_maker(quantization), project_embedding=table)
            off = checked(name, deviation(packed, drafter), MAX_DEVIATION[quantization])
            found[name] = (packed, Layout(quantization is not None, table), off)
    return found


@torch.inference_mode()
def deviation(drafter: DrafterInterface, exact: Drafter) -> float:
    """Standard deviation of the error of a second step's logits, relative to that of the logits."""
    hidden = exact.config.hidden_size
    embedding, context = torch.randn(3, hidden), torch.randn(2, hidden)
    found = []
    for each in (drafter, exact):
        inputs = each.token_inputs(embedding)
        state = each.initial_state(context)
        for token in (1, 2):
            state = each.next_state(state, inputs[token].expand(2, hidden))
        found.append(each.logits(each.context_share(context), state).float())
    return float((found[0] - found[1]).std() / found[1].std())


def checked(name: str, off: float, limit: float) -> float:
    """`off`. Raises ValueError where it is more than `limit`, or NaN."""
    if not off <= limit:
        raise ValueError(f"{name}: the logits are off by {off:.1%} of their spread, more than {limit:.0%}")
    return off


@torch.inference_mode()
def seconds_of(
    drafters: dict[str, DrafterInterface], embedding: Tensor, drafting: DraftingConfig, batch: int, rounds: int
) -> dict[str, list[float]]:
    """Seconds of each round after the warm-up, by drafter."""
    inputs = {name: drafter.token_inputs(embedding) for name, drafter in drafters.items()}
    context, roots = torch.randn(batch, embedding.shape[1]), torch.arange(batch)
    beam_limit = torch.full((batch,), drafting.beam_width)
    found: dict[str, list[float]] = {name: [] for name in drafters}
    for turn in range(WARM_UP + rounds):
        for name, drafter in drafters.items():
            _wait(embedding)
            start = time.perf_counter()
            propose_trees(drafter, inputs[name], context, roots, beam_limit, drafting)
            _wait(embedding)
            if turn >= WARM_UP:
                found[name].append(time.perf_counter() - start)
    return found


def _wait(tensor: Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize()


def run(args: argparse.Namespace, console: Console) -> cli.Report:
    shape = find_shape(args.shape)
    config = published_drafter(shape, draft_vocab_size=args.draft_vocab_size or None)
    drafting = DraftingConfig(args.beam_width, args.beam_length)
    work = Workload(drafting, args.batch, dtype=args.dtype)
    dtype = getattr(torch, args.dtype)
    torch.manual_seed(0)
    rows: list[dict[str, Any]] = []
    with alone_in_vllm(args.device, dtype):
        found = ways(random_drafter(config), dtype)
        embedding = torch.randn(shape.vocab_size, shape.hidden_size)
        drafters = {name: drafter for name, (drafter, _, _) in found.items()}
        for threads in args.threads:
            torch.set_num_threads(threads)
            for name, seconds in seconds_of(drafters, embedding, drafting, args.batch, args.rounds).items():
                _, layout, off = found[name]
                rows.append(
                    {
                        "threads": threads,
                        "way": name,
                        "logits_off_by": off,
                        "median_seconds": statistics.median(seconds),
                        "least_seconds": min(seconds),
                        "bytes": round_reads(config, work, layout).total,
                        "kept_bytes": kept_bytes(config, work, layout),
                    }
                )
    return {
        "shape": args.shape,
        "batch": args.batch,
        "dtype": args.dtype,
        "drafting": {"beam_width": args.beam_width, "beam_length": args.beam_length},
        "draft_tokens": config.output_size,
        "rounds": args.rounds,
        "results": rows,
    }


def print_table(report: cli.Report, console: Console) -> None:
    table = Table(
        title=f"{report['shape']}, batch {report['batch']}, {report['draft_tokens']:,} draft tokens, {report['dtype']}",
        title_justify="left",
    )
    for column in ("drafter", "threads", "median ms", "least ms", "MB read", "GB/s", "kept MB", "off by"):
        table.add_column(column, justify="left" if column == "drafter" else "right")
    for row in report["results"]:
        table.add_row(
            row["way"],
            str(row["threads"]),
            f"{row['median_seconds'] * 1e3:.2f}",
            f"{row['least_seconds'] * 1e3:.2f}",
            f"{row['bytes'] / 1e6:.0f}",
            f"{row['bytes'] / row['median_seconds'] / 1e9:.0f}",
            f"{row['kept_bytes'] / 1e6:.0f}",
            f"{row['logits_off_by']:.1%}",
        )
    console.print(table)


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = cli.make_parser(MODULE, "Time of a drafting round by the drafter's format.")
    parser.add_argument("--shape", default="llama-1b", help="of the target: a name, a config.json or its folder")
    parser.add_argument("--draft-vocab-size", type=int, default=8000, help="0: the whole vocabulary")
    cli.add_beams(parser)
    parser.add_argument("--batch", type=int, default=1, help="requests")
    parser.add_argument("--dtype", choices=list(DTYPE_BYTES), default="bfloat16")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, nargs="+", default=[1], help="CPU threads; one row per number")
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds of each format")
    cli.add_out(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run_benchmark(MODULE, argv, parse_args, run, print_table)


if __name__ == "__main__":
    sys.exit(main())
