# SPDX-License-Identifier: Apache-2.0
"""Time of a target's matrix products by rows, vLLM's and packed: `python -m benchmarks.models.products`.

What a step over so many rows multiplies, layer after layer, on a CPU in bfloat16. Weights are random: the time does not
depend on them. They are more than the processor's caches hold, or the layers are repeated until they are. Packed
weights are also measured as an engine has them, on huge pages. All kinds take turns, pass by pass, as memory is faster
in some minutes than in others.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks import cli
from redrafter_vllm.ops import packed_linear
from redrafter_vllm.predict.shapes import LlamaShape, find_shape
from redrafter_vllm.utils.huge_pages import HugePages

MODULE = "benchmarks.models.products"
ROWS = (1, 2, 4, 6, 8, 12, 14, 16, 24, 32, 64, 256)
LEAST_BYTES = 1 << 29  # of weights that one pass reads

Product = Callable[[Tensor], Tensor]


def products_of_a_layer(shape: LlamaShape) -> list[tuple[int, int]]:
    """(outputs, inputs) of the products: one for queries, keys and values, one for gate and up, as in vLLM."""
    queries, keys = shape.num_attention_heads * shape.head_dim, shape.num_key_value_heads * shape.head_dim
    hidden, inner = shape.hidden_size, shape.intermediate_size
    return [(queries + 2 * keys, hidden), (hidden, queries), (2 * inner, hidden), (hidden, inner)]


def by_vllm(weight: Tensor) -> Product:
    """What vLLM makes of a layer's weight on this processor."""
    from vllm.model_executor.layers import utils

    layer = torch.nn.Module()
    layer.weight = torch.nn.Parameter(weight, requires_grad=False)
    utils.dispatch_cpu_unquantized_gemm(layer, remove_weight=False)
    multiply: Callable[..., Tensor] = layer.cpu_linear  # type: ignore[assignment]
    return lambda x: multiply(x, weight, None)


def by_packed(weight: Tensor, pages: HugePages | None = None) -> Product:
    packed, size = packed_linear.pack(weight), weight.shape[0]
    if pages is not None:
        packed = pages.copy(packed)
    return lambda x: packed_linear.linear(x, packed, None, size)


def checked(ways: dict[str, list[Product]], weights: Sequence[Tensor]) -> None:
    """Raise ValueError where a product is not that of its weight."""
    for name, products in ways.items():
        for product, weight in zip(products, weights, strict=True):
            x = torch.randn(3, weight.shape[1]).bfloat16()
            off = (product(x).float() - x.float() @ weight.float().t()).abs().max()
            if not off < 0.1:
                raise ValueError(f"{name}: a product of {tuple(weight.shape)} is off by {off:.2g}")


@torch.inference_mode()
def run(args: argparse.Namespace, console: Console) -> cli.Report:
    from vllm.platforms import current_platform

    current_platform.import_kernels()
    if not packed_linear.supports(torch.zeros(32, 2, dtype=torch.bfloat16)):
        raise ValueError("weights are not packed here: this needs bfloat16 instructions, no AMX, and a C++ compiler")
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    shape = find_shape(args.shape)
    sizes = products_of_a_layer(shape)
    layer_bytes = 2 * sum(outputs * inputs for outputs, inputs in sizes)
    layers = -(-LEAST_BYTES // layer_bytes)
    weights = [(torch.randn(size) * size[1] ** -0.5).bfloat16() for _ in range(layers) for size in sizes]
    pages = HugePages()
    ways = {
        "vLLM": [by_vllm(each) for each in weights],
        "packed": [by_packed(each) for each in weights],
        "served": [by_packed(each, pages) for each in weights],
    }
    checked(ways, weights)
    results: list[dict[str, Any]] = []
    for rows in args.rows:
        inputs = {width: torch.randn(rows, width).bfloat16() for _, width in sizes}
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(args.rounds + 1):
            for name, products in ways.items():
                began = time.perf_counter()
                for product, weight in zip(products, weights, strict=True):
                    product(inputs[weight.shape[1]])
                if turn:  # the first prepares oneDNN for this number of rows
                    seconds[name].append(time.perf_counter() - began)
        scale = shape.num_hidden_layers / layers
        results.append({"rows": rows} | {name: scale * statistics.median(found) for name, found in seconds.items()})
    found = {"shape": args.shape, "layers": shape.num_hidden_layers, "threads": args.threads, "rounds": args.rounds}
    return found | {"bytes": shape.num_hidden_layers * layer_bytes, "results": results}


def print_table(report: cli.Report, console: Console) -> None:
    title = f"{report['shape']}: products of {report['layers']} layers, {report['bytes'] / 1e9:.2f} GB of weights"
    table = Table(title=f"{title}, {report['threads']} threads", title_justify="left")
    for column in ("rows", "vLLM, ms", "packed, ms", "on huge pages, ms", "times as fast", "GB/s"):
        table.add_column(column, justify="right")
    for row in report["results"]:
        milliseconds = [f"{1e3 * row[name]:.1f}" for name in ("vLLM", "packed", "served")]
        factor, rate = row["vLLM"] / row["served"], report["bytes"] / row["served"] / 1e9
        table.add_row(str(row["rows"]), *milliseconds, f"{factor:.2f}", f"{rate:.0f}")
    console.print(table)


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = cli.make_parser(MODULE, "Time of a target's products by rows on a CPU, in bfloat16: vLLM's and packed.")
    parser.add_argument("--shape", default="llama-1b", help="of the target: a name, a config.json or its folder")
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS, help="of a step")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--rounds", type=int, default=7, help="timed passes of each kind, of which the median counts")
    cli.add_out(parser)
    options = parser.parse_args(argv)
    if min(options.rows) < 1 or options.threads < 1 or options.rounds < 1:
        parser.error("--rows, --threads and --rounds must be at least 1")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run_benchmark(MODULE, argv, parse_args, run, print_table)


if __name__ == "__main__":
    sys.exit(main())
