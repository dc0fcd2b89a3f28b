# SPDX-License-Identifier: Apache-2.0
"""Training with conversations packed into rows, against one conversation per row.

`python -m benchmarks.training.packing --data FILE --tokenizer DIR`. Both ways train a drafter of the same shape on the
same conversations, with a random target of the tokenizer's vocabulary; their steps alternate. A packed step does more
work and has more positions with a loss, so positions per second are compared, not steps.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch
from rich.console import Console
from torch import nn
from tqdm import tqdm
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from benchmarks import cli
from redrafter_training.config.recipe import Budget, DistillConfig
from redrafter_training.data.batches import conversation_batches
from redrafter_training.data.conversations import load_conversations
from redrafter_training.data.tokenize import Example, ExampleEncoder, encode_all
from redrafter_training.data.windows import Windows
from redrafter_training.distributed.context import LocalContext
from redrafter_training.target.model import TargetModel
from redrafter_training.target.packing_probe import show_borders
from redrafter_training.trainer.gradients import Replica, accumulate_gradients
from redrafter_training.trainer.loop import build_drafter, inner_matrices
from redrafter_training.trainer.optimizer import SplitOptimizer
from redrafter_vllm.utils import strict_json
from redrafter_vllm.utils.paths import user_place

MODULE = "benchmarks.training.packing"
PADDING_BATCHES = 50  # that the share of padding is computed from


def batches(examples: Sequence[Example], config: DistillConfig, count: int) -> list[Windows]:
    endless = conversation_batches(
        examples,
        [],
        batch_size=config.batch_size,
        response_fraction=0.0,
        min_length=config.beam_length + 1,
        seed=config.seed,
        window=config.window if config.packing else None,
    )
    return list(islice(endless, count))


def padding_share(made: Sequence[Windows]) -> float:
    padding = sum(int((batch.doc_ids < 0).sum()) for batch in made if batch.doc_ids is not None)
    return padding / sum(batch.tokens.numel() for batch in made)


def positions(batch: Windows, config: DistillConfig) -> int:
    """Positions with a loss at the first depth."""
    return int(batch.terms(1, 0, batch.tokens.shape[1] - config.beam_length).sum())


class Way:
    """One of the two ways to fill rows, with its drafter."""

    def __init__(self, target: TargetModel, examples: Sequence[Example], config: DistillConfig, steps: int) -> None:
        self.target, self.config = target, config
        self.drafter = build_drafter(target, config)
        self.replica = Replica(self.drafter, LocalContext())
        self.optimizer = SplitOptimizer(
            self.drafter, inner_matrices(self.drafter), learning_rate=1e-3, weight_decay=0.01
        )
        self.batches = batches(examples, config, max(steps, PADDING_BATCHES))

    def step(self, number: int) -> tuple[float, float]:
        """Train one step; CPU seconds of this process, and elapsed seconds."""
        started, cpu_started = time.perf_counter(), time.process_time()
        embedding = self.target.embedding.float()
        accumulate_gradients(self.replica, embedding, self.target, self.batches[number], self.config, LocalContext())
        nn.utils.clip_grad_norm_(self.drafter.parameters(), self.config.max_grad_norm)
        self.optimizer.step(1.0)
        return time.process_time() - cpu_started, time.perf_counter() - started


def make_ways(args: argparse.Namespace) -> tuple[dict[str, Way], int]:
    """Both ways by name, and the number of examples."""
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
    conversations, report = load_conversations([args.data])
    examples = encode_all(conversations, ExampleEncoder(tokenizer, args.window, "vicuna"), report, quiet=True)
    torch.manual_seed(0)
    shape = {"hidden_size": args.hidden_size, "intermediate_size": 2 * args.hidden_size, "num_hidden_layers": 2}
    target = TargetModel(
        LlamaForCausalLM(
            LlamaConfig(vocab_size=len(tokenizer), num_attention_heads=4, max_position_embeddings=args.window, **shape)
        )
    )
    if not show_borders(target):
        raise ValueError("the target attends across the borders of packed conversations")
    ways = {}
    for name in ("one per row", "packed"):
        config = DistillConfig(
            Budget(1), window=args.window, batch_size=args.batch_size, response_fraction=0.0, packing=name == "packed"
        )
        ways[name] = Way(target, examples, config, args.steps + 1)
    return ways, len(examples)


def run(args: argparse.Namespace, console: Console) -> cli.Report:
    torch.set_num_threads(1)
    ways, num_examples = make_ways(args)
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for number in tqdm(range(args.steps + 1), unit="round"):
        for name, way in ways.items():
            measured[name].append(way.step(number))
    config = {name: value for name, value in vars(args).items() if name != "out"}
    figures: dict[str, Any] = {"examples": num_examples, "config": config, "load_average": os.getloadavg()[0]}
    rates = []
    for name, way in ways.items():
        counted = way.batches[1 : args.steps + 1]
        cpu = sum(step[0] for step in measured[name][1:])
        learned = sum(positions(batch, way.config) for batch in counted)
        rates.append(learned / cpu)
        figures[name] = {
            "padding_share": padding_share(way.batches[:PADDING_BATCHES]),
            "steps_per_cpu_second": args.steps / cpu,
            "steps_per_second": 1 / statistics.median(step[1] for step in measured[name][1:]),
            "positions_per_step": learned / args.steps,
            "positions_per_cpu_second": rates[-1],
        }
    figures["positions_per_cpu_second_ratio"] = rates[1] / rates[0]
    return figures


def show(report: cli.Report, console: Console) -> None:
    print(strict_json.dumps(report, indent=1))


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = cli.make_parser(MODULE, "Training with conversations packed into rows, against one conversation per row.")
    parser.add_argument("--data", type=user_place, required=True, help="conversations")
    parser.add_argument("--tokenizer", required=True, help="folder or hub name")
    parser.add_argument("--window", type=int, default=1024, help="tokens per row")
    parser.add_argument("--batch-size", type=int, default=2, help="rows per step")
    parser.add_argument("--hidden-size", type=int, default=64, help="of the random target")
    parser.add_argument("--steps", type=int, default=8, help="counted steps of each way, after one that is not counted")
    cli.add_out(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run_benchmark(MODULE, argv, parse_args, run, show)


if __name__ == "__main__":
    sys.exit(main())
