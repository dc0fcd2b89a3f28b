# SPDX-License-Identifier: Apache-2.0
"""Whole training steps on a target: `python -m benchmarks.training.whole_step --target MODEL`.

Steps in float32 and in mixed precision, with the target computed in the step or its hidden states read, take turns on
the same tokens; figures are medians. A training that reads hidden states computes them once: a token of it costs its
share of that pass, divided by the number of epochs, and its share of the step.
"""

import os
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn
from tqdm import tqdm
from transformers import AutoModelForCausalLM

from benchmarks import cli
from benchmarks.record import RESULTS
from redrafter_training.config.recipe import Budget, DistillConfig, MixedPrecision, ResponseConfig
from redrafter_training.data.windows import Windows
from redrafter_training.distributed.context import LocalContext
from redrafter_training.target.lm_head import TargetHead
from redrafter_training.target.model import Target, TargetModel, TargetOutputs
from redrafter_training.target.precision import mixed_precision
from redrafter_training.trainer.gradients import Replica, accumulate_gradients
from redrafter_training.trainer.loop import build_drafter, inner_matrices
from redrafter_training.trainer.optimizer import SplitOptimizer

MODULE = "benchmarks.training.whole_step"
EPOCHS = (1, 2, 3, 5)


@dataclass(frozen=True)
class Options:
    """Options of the measurement. Raises ValueError."""

    target: Path
    exit_dim: int | None = None
    num_draft_layers: int = 1
    draft_vocab_size: int | None = None
    beam_length: int = 4
    batch_size: int = 2
    window: int = 1024
    chunk: int = 512
    rounds: int = 5
    threads: int = 2
    seed: int = 0
    out: Path = RESULTS
    device: str = "cpu"

    def __post_init__(self) -> None:
        if min(self.rounds, self.threads) < 1:
            raise ValueError(f"need at least one round and one thread, got {self.rounds} and {self.threads}")
        if not self.target.is_dir():
            raise ValueError(f"--target {self.target} is not a folder")

    def recipe(self, precision: MixedPrecision) -> DistillConfig:
        return DistillConfig(
            Budget(1),
            exit_dim=self.exit_dim,
            num_draft_layers=self.num_draft_layers,
            draft_vocab_size=self.draft_vocab_size,
            beam_length=self.beam_length,
            batch_size=self.batch_size,
            window=self.window,
            chunk=self.chunk,
            seed=self.seed,
            response_fraction=0.0,
            responses=ResponseConfig(count=0),
            mixed_precision=precision,
        )


class StoredTarget(Target):
    """A target whose hidden states and top-1 tokens of one batch are in memory, as a cache reads them."""

    def __init__(self, head: TargetHead, outputs: TargetOutputs) -> None:
        self.embedding, self._head = head.embedding, head
        self._hidden, self._top1_ids = outputs.hidden.bfloat16(), outputs.top1_ids

    @property
    def head_weight(self) -> Tensor:
        return self._head.weight

    @torch.no_grad()
    def outputs(
        self, tokens: Tensor, positions: Tensor | None = None, draft_tokens: Tensor | None = None
    ) -> TargetOutputs:
        logits = self._head.restricted(draft_tokens).logits(self._hidden)
        return TargetOutputs(self._hidden, logits, self._top1_ids)


@dataclass
class Form:
    """One kind of step: a drafter and its optimizer, and the target that it learns from."""

    config: DistillConfig
    target: Target
    batch: Windows

    def __post_init__(self) -> None:
        kept = None if self.config.draft_vocab_size is None else torch.arange(self.config.draft_vocab_size)
        self._context = LocalContext(device=torch.device("cpu"))
        self._drafter = build_drafter(self.target, self.config, kept).train()
        self._replica = Replica(self._drafter, self._context)
        self._embedding = self.target.embedding.float()
        self._optimizer = SplitOptimizer(
            self._drafter, inner_matrices(self._drafter), learning_rate=1e-3, weight_decay=0.01
        )
        self.seconds: list[float] = []
        self.losses: list[float] = []

    def step(self) -> None:
        started = time.perf_counter()
        figures = accumulate_gradients(
            self._replica, self._embedding, self.target, self.batch, self.config, self._context
        )
        nn.utils.clip_grad_norm_(self._drafter.parameters(), self.config.max_grad_norm)
        self._optimizer.step(1.0)
        self.seconds.append(time.perf_counter() - started)
        self.losses.append(figures.loss)


def make_forms(options: Options) -> dict[str, Form]:
    """The kinds of step by name, on one batch of random tokens."""
    exact = TargetModel(AutoModelForCausalLM.from_pretrained(options.target, dtype=torch.float32))
    mixed = TargetModel(AutoModelForCausalLM.from_pretrained(options.target, dtype=torch.bfloat16))
    rows = (options.batch_size, options.window)
    tokens = torch.randint(exact.vocab_size, rows, generator=torch.Generator().manual_seed(options.seed))
    batch = Windows(tokens, torch.ones(rows, dtype=torch.bool))
    with mixed_precision(torch.device("cpu"), "bf16"):
        stored = StoredTarget(mixed.head(), mixed.outputs(tokens))
    return {
        "fp32": Form(options.recipe("none"), exact, batch),
        "mixed": Form(options.recipe("bf16"), mixed, batch),
        "mixed, states read": Form(options.recipe("bf16"), stored, batch),
    }


def fill_seconds(form: Form) -> float:
    """Time of computing what the cache stores of one batch."""
    started = time.perf_counter()
    with mixed_precision(torch.device("cpu"), "bf16"):
        form.target.outputs(form.batch.tokens)
    return time.perf_counter() - started


def run(options: Options, console: Console) -> cli.Report:
    torch.set_num_threads(options.threads)
    forms = make_forms(options)
    filling: list[float] = []
    with tqdm(total=(options.rounds + 1) * (len(forms) + 1), unit="step", desc="whole step") as bar:
        for number in range(options.rounds + 1):
            for name in forms if number % 2 else reversed(forms):
                bar.set_postfix(form=name)
                forms[name].step()
                bar.update()
            filling.append(fill_seconds(forms["mixed"]))
            bar.update()
    tokens = options.batch_size * options.window
    # The first round allocates the optimizer's state.
    medians = {name: statistics.median(form.seconds[1:]) for name, form in forms.items()}
    fill = statistics.median(filling[1:])
    return {
        "load_average": os.getloadavg()[0],
        "config": {key: str(value) for key, value in asdict(options).items() if key != "out"},
        "tokens_per_second": {name: tokens / seconds for name, seconds in medians.items()},
        "filling_tokens_per_second": tokens / fill,
        "epochs": {str(count): tokens / (fill / count + medians["mixed, states read"]) for count in EPOCHS},
        "seconds": {name: form.seconds for name, form in forms.items()} | {"filling": filling},
        "losses": {name: form.losses for name, form in forms.items()},
    }


def parse_args(argv: Sequence[str]) -> Options:
    parser = cli.make_parser(MODULE, "Whole training steps in float32 and in mixed precision.")
    cli.add_target(parser)
    defaults: dict[str, Any] = {name: field.default for name, field in Options.__dataclass_fields__.items()}
    for name, text in (
        ("exit_dim", "width of the drafter's head (None: twice the target's hidden size)"),
        ("num_draft_layers", "residual blocks of the drafter"),
        ("draft_vocab_size", "tokens of the drafter's vocabulary (None: the target's)"),
        ("beam_length", "depths"),
        ("batch_size", "rows per step"),
        ("window", "tokens per row"),
        ("chunk", "positions per row that the step computes at a time"),
        ("rounds", "counted rounds, after one that is not counted"),
        ("threads", "of torch"),
        ("seed", "of weights and tokens"),
    ):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=defaults[name], help=text)
    cli.add_out(parser)
    return Options(**vars(parser.parse_args(argv)))


def show(report: cli.Report, console: Console) -> None:
    speeds = report["tokens_per_second"]
    print(f"{'step':>24} {'tokens/s':>9} {'ratio':>6}")
    for name, speed in speeds.items():
        print(f"{name:>24} {speed:>9,.0f} {speed / speeds['fp32']:>6.2f}")
    for count, speed in report["epochs"].items():
        print(f"{f'states read, {count} epochs':>24} {speed:>9,.0f} {speed / speeds['fp32']:>6.2f}")
    print(f"hidden states are computed at {report['filling_tokens_per_second']:,.0f} tokens/s")


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run_benchmark(MODULE, argv, parse_args, run, show)


if __name__ == "__main__":
    sys.exit(main())
