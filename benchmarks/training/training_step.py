# SPDX-License-Identifier: Apache-2.0
"""A training step against the reference: `python -m benchmarks.training.training_step`.

Both steps start from the target's hidden states and logits, whose cost is the same, and end with the optimizer's step.
The reference computes all logits of all depths and positions at once, with gradients by autograd. Rounds of the two
alternate; figures are medians. Peak memory is what a step adds to the memory in use before it: resident memory on a CPU
(Linux), allocated device memory on a GPU.
"""

import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks import cli
from benchmarks.record import RESULTS
from benchmarks.training.peak_memory import PeakMemory
from redrafter_training.config.recipe import Budget, DistillConfig, LossConfig, ResponseConfig
from redrafter_training.data.windows import Windows
from redrafter_training.distributed.context import LocalContext
from redrafter_training.target.model import TargetModel, TargetOutputs
from redrafter_training.trainer.fused_head_loss import head_loss_reference
from redrafter_training.trainer.gradients import Replica, accumulate_gradients
from redrafter_training.trainer.loop import inner_matrices
from redrafter_training.trainer.loss import num_positions, truth_of, unrolled_features
from redrafter_training.trainer.optimizer import SplitOptimizer
from redrafter_vllm.checkpoint.config import DrafterConfig
from redrafter_vllm.model.drafter import Drafter

MODULE = "benchmarks.training.training_step"
MIB = 1 << 20


@dataclass(frozen=True)
class Options:
    """Options of the measurement. Raises ValueError."""

    vocab_sizes: tuple[int, ...] = (32_000, 128_000)
    draft_vocab_size: int | None = None
    hidden_size: int = 64
    num_draft_layers: int = 1
    beam_length: int = 4
    batch_size: int = 2
    window: int = 100
    chunk: int = 32
    label_share: float = 0.0
    rounds: int = 5
    threads: int = 1
    device: str = "cpu"
    seed: int = 0
    out: Path = RESULTS

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.threads < 1:
            raise ValueError(f"need at least one round and one thread, got {self.rounds} and {self.threads}")


class RecordedTarget(TargetModel):
    """A target whose outputs have been computed before."""

    def __init__(self, outputs: TargetOutputs) -> None:
        self._outputs = outputs

    def outputs(
        self, tokens: Tensor, positions: Tensor | None = None, draft_tokens: Tensor | None = None
    ) -> TargetOutputs:
        return self._outputs


@dataclass(frozen=True)
class Setting:
    """One vocabulary size: everything that a step needs."""

    config: DistillConfig
    shape: DrafterConfig
    embedding: Tensor  # [V, H]
    outputs: TargetOutputs
    batch: Windows

    def drafter(self) -> Drafter:
        torch.manual_seed(self.config.seed)
        return Drafter(self.shape).to(self.embedding.device)


def make_setting(options: Options, vocab_size: int) -> Setting:
    """Random outputs of a target; the second half of the batch's last row is padding."""
    config = DistillConfig(
        Budget(1),
        beam_length=options.beam_length,
        window=options.window,
        batch_size=options.batch_size,
        chunk=options.chunk,
        seed=options.seed,
        loss=LossConfig(label_share=options.label_share),
        response_fraction=0.0,
        responses=ResponseConfig(count=0),
    )
    shape = DrafterConfig(
        vocab_size,
        options.hidden_size,
        2 * options.hidden_size,
        options.num_draft_layers,
        draft_vocab_size=options.draft_vocab_size,
    )
    generator = torch.Generator().manual_seed(options.seed)
    rows = (options.batch_size, options.window)
    embedding = torch.randn(vocab_size, options.hidden_size, generator=generator)
    hidden = torch.randn(*rows, options.hidden_size, generator=generator)
    loss_mask = torch.ones(rows, dtype=torch.bool)
    loss_mask[-1, options.window // 2 :] = False
    batch = Windows(torch.randint(vocab_size, rows, generator=generator), loss_mask)
    device = torch.device(options.device)
    logits = hidden @ embedding.T / 4
    # A new drafter's draft vocabulary is that of the lowest ids.
    outputs = TargetOutputs(
        hidden.to(device), logits[..., : options.draft_vocab_size].to(device), logits.argmax(-1).to(device)
    )
    return Setting(config, shape, embedding.to(device), outputs, batch.to(device))


def lean_gradients(drafter: Drafter, setting: Setting) -> float:
    """Gradients as the training loop computes them, chunk by chunk."""
    target = RecordedTarget(setting.outputs)
    context = LocalContext(device=setting.batch.tokens.device)
    replica = Replica(drafter, context)
    return accumulate_gradients(replica, setting.embedding, target, setting.batch, setting.config, context).loss


def reference_gradients(drafter: Drafter, setting: Setting) -> float:
    """Gradients by autograd from all logits of all depths at once."""
    config, batch = setting.config, setting.batch
    depths, last = config.beam_length, num_positions(config.window, config.beam_length)
    counts = torch.stack([batch.loss_mask[:, t : t + last].sum() for t in range(1, depths + 1)]).clamp(min=1)
    scale = torch.tensor(config.depth_weights, device=counts.device) / counts
    with torch.autocast(batch.tokens.device.type, torch.bfloat16):
        features = unrolled_features(drafter, setting.embedding, setting.outputs.hidden, batch.tokens, depths, 0, last)
        truth = truth_of(setting.outputs, batch.tokens, batch.loss_mask, depths, 0, last)
        result = head_loss_reference(features, drafter.output.weight, truth, scale, config.loss, drafter.draft_tokens)
    result.total.backward()
    return float(result.total.detach())


FORMS: dict[str, Callable[[Drafter, Setting], float]] = {
    "straightforward": reference_gradients,
    "lean": lean_gradients,
}


@dataclass(frozen=True)
class Step:
    """One measured step."""

    seconds: float
    cpu_seconds: float  # of this process: varies less on a shared machine
    peak_bytes: int
    loss: float


def measured_step(drafter: Drafter, optimizer: SplitOptimizer, form: str, setting: Setting) -> Step:
    memory = PeakMemory(setting.embedding.device)
    started, cpu_started = time.perf_counter(), time.process_time()
    loss = FORMS[form](drafter, setting)
    nn.utils.clip_grad_norm_(drafter.parameters(), setting.config.max_grad_norm)
    optimizer.step(1.0)
    memory.synchronize()
    return Step(time.perf_counter() - started, time.process_time() - cpu_started, memory.added(), loss)


def largest_difference(setting: Setting) -> float:
    """The largest difference of the two forms' gradients, which are computed in bf16, relative to the largest entry."""
    gradients = []
    for form in FORMS.values():
        drafter = setting.drafter()
        form(drafter, setting)
        gradients.append(torch.cat([p.grad.flatten() for p in drafter.parameters() if p.grad is not None]))
    return float((gradients[0] - gradients[1]).abs().max() / gradients[0].abs().max())


def measure(options: Options, vocab_size: int, bar: tqdm) -> dict[str, Any]:
    """Medians of both forms at one vocabulary size."""
    setting = make_setting(options, vocab_size)
    difference = largest_difference(setting)
    bar.update()
    steps: dict[str, list[Step]] = {form: [] for form in FORMS}
    drafters = {form: setting.drafter().train() for form in FORMS}
    optimizers = {
        form: SplitOptimizer(drafter, inner_matrices(drafter), learning_rate=1e-3, weight_decay=0.01)
        for form, drafter in drafters.items()
    }
    for number in range(options.rounds + 1):
        for form in FORMS if number % 2 else reversed(FORMS):
            bar.set_postfix(vocab=vocab_size, form=form)
            step = measured_step(drafters[form], optimizers[form], form, setting)
            if number:  # the first round allocates the optimizer's state
                steps[form].append(step)
            bar.update()
    tokens = options.batch_size * num_positions(options.window, options.beam_length)
    figures: dict[str, Any] = {"vocab_size": vocab_size, "gradient_difference": difference}
    for form, made in steps.items():
        seconds = statistics.median(step.seconds for step in made)
        figures[form] = {
            "seconds": seconds,
            "cpu_seconds": statistics.median(step.cpu_seconds for step in made),
            "positions_per_second": tokens / seconds,
            "peak_mib": statistics.median(step.peak_bytes for step in made) / MIB,
            "rounds": [asdict(step) for step in made],
        }
    straightforward, lean = figures["straightforward"], figures["lean"]
    pairs = list(zip(steps["straightforward"], steps["lean"], strict=True))
    figures["speed_ratio"] = statistics.median(slow.seconds / fast.seconds for slow, fast in pairs)
    figures["cpu_time_ratio"] = statistics.median(slow.cpu_seconds / fast.cpu_seconds for slow, fast in pairs)
    figures["memory_ratio"] = straightforward["peak_mib"] / lean["peak_mib"]
    return figures


def run(options: Options, console: Console) -> cli.Report:
    torch.set_num_threads(options.threads)
    with tqdm(total=len(options.vocab_sizes) * (2 * options.rounds + 3), unit="step", desc="training step") as bar:
        rows = [measure(options, size, bar) for size in options.vocab_sizes]
    config = {key: value for key, value in asdict(options).items() if key != "out"}
    return {"load_average": os.getloadavg()[0], "config": config, "results": rows}


def parse_args(argv: Sequence[str]) -> Options:
    parser = cli.make_parser(MODULE, "Time and memory of a training step against the reference.")
    default = Options()
    parser.add_argument("--vocab-sizes", type=int, nargs="+", default=default.vocab_sizes, help="one row per size")
    for name, text in (
        ("draft_vocab_size", "tokens of the drafter's vocabulary (None: the target's)"),
        ("hidden_size", "of the target"),
        ("num_draft_layers", "residual blocks of the drafter"),
        ("beam_length", "depths"),
        ("batch_size", "windows"),
        ("window", "tokens per window"),
        ("chunk", "positions per window that the step computes at a time"),
        ("rounds", "counted rounds of each form, after one that is not counted"),
        ("threads", "of torch on a CPU"),
        ("seed", "of weights and inputs"),
    ):
        value = getattr(default, name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value, help=text)
    parser.add_argument("--label-share", type=float, default=default.label_share, help="cross-entropy's share")
    parser.add_argument("--device", default=default.device, help="cpu or cuda")
    cli.add_out(parser)
    args = vars(parser.parse_args(argv))
    return Options(**args | {"vocab_sizes": tuple(args["vocab_sizes"])})


def show(report: cli.Report, console: Console) -> None:
    print(f"{'vocabulary':>10} {'form':>16} {'s/step':>8} {'CPU s':>7} {'positions/s':>12} {'peak MiB':>9}")
    for row in report["results"]:
        for form in FORMS:
            own = row[form]
            times = f"{own['seconds']:>8.3f} {own['cpu_seconds']:>7.3f} {own['positions_per_second']:>12.1f}"
            print(f"{row['vocab_size']:>10} {form:>16} {times} {own['peak_mib']:>9.0f}")


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run_benchmark(MODULE, argv, parse_args, run, show)


if __name__ == "__main__":
    sys.exit(main())
