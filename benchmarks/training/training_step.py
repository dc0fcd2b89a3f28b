# SPDX-License-Identifier: Apache-2.0
"""A training step against the straightforward one: `python -m benchmarks.training.training_step`.

Both steps start from the target's hidden states and logits, which cost the same either way, and end with the
optimizer's update. The straightforward one computes all logits of all depths and positions at once and leaves the
gradient to autograd. Rounds of the two alternate; figures are medians. Peak memory is what a step adds to what the
process holds before it: resident memory on a CPU (Linux), allocated device memory on a GPU.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.machine import PeakMemory
from benchmarks.record import RESULTS, record
from redrafter_training.config.recipe import Budget, DistillConfig, LossConfig, ResponseConfig
from redrafter_training.data.windows import Windows
from redrafter_training.distributed.context import LocalContext
from redrafter_training.target.model import TargetModel, TargetOutputs
from redrafter_training.trainer.fused_head_loss import head_loss_reference
from redrafter_training.trainer.loop import Replica, accumulate_gradients, inner_matrices
from redrafter_training.trainer.loss import num_positions, truth_of, unrolled_features
from redrafter_training.trainer.optimizer import SplitOptimizer
from redrafter_vllm.checkpoint.config import DrafterConfig
from redrafter_vllm.model.drafter import Drafter
from redrafter_vllm.utils.paths import user_path

MIB = 1 << 20


@dataclass(frozen=True)
class Options:
    """What is measured."""

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

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.threads < 1:
            raise ValueError(f"need at least one round and one thread, got {self.rounds} and {self.threads}")


class RecordedTarget(TargetModel):
    """A target whose outputs are at hand."""

    def __init__(self, outputs: TargetOutputs) -> None:
        self._outputs = outputs

    def outputs(self, tokens: Tensor, positions: Tensor | None = None) -> TargetOutputs:
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
    """Random outputs of a target; the last row of the batch is half padding."""
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
    outputs = TargetOutputs(hidden.to(device), (hidden @ embedding.T / 4).to(device))
    return Setting(config, shape, embedding.to(device), outputs, batch.to(device))


def lean_gradients(drafter: Drafter, setting: Setting) -> float:
    """The training loop's own."""
    target = RecordedTarget(setting.outputs)
    context = LocalContext(device=setting.batch.tokens.device)
    replica = Replica(drafter, context)
    return accumulate_gradients(replica, setting.embedding, target, setting.batch, setting.config, context).loss


def reference_gradients(drafter: Drafter, setting: Setting) -> float:
    """All logits of all depths at once."""
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
    cpu_seconds: float  # of this process: on a machine shared with others the steadier figure
    peak_bytes: int
    loss: float


def measured_step(drafter: Drafter, optimizer: SplitOptimizer, form: str, setting: Setting) -> Step:
    memory = PeakMemory(setting.embedding.device)
    started, cpu_started = time.perf_counter(), time.process_time()
    loss = FORMS[form](drafter, setting)
    nn.utils.clip_grad_norm_(drafter.parameters(), setting.config.max_grad_norm)
    optimizer.step(1.0)
    memory.synchronise()
    return Step(time.perf_counter() - started, time.process_time() - cpu_started, memory.added(), loss)


def largest_difference(setting: Setting) -> float:
    """The largest difference of the two forms' gradients, over the largest entry; they are computed in bf16."""
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


def run(options: Options) -> dict[str, Any]:
    torch.set_num_threads(options.threads)
    with tqdm(total=len(options.vocab_sizes) * (2 * options.rounds + 3), unit="step", desc="training step") as bar:
        rows = [measure(options, size, bar) for size in options.vocab_sizes]
    return {"load_average": os.getloadavg()[0], "config": asdict(options), "results": rows}


def parse_args(argv: Sequence[str]) -> tuple[Options, Path]:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training.training_step",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = Options()
    parser.add_argument("--vocab-sizes", type=int, nargs="+", default=default.vocab_sizes, help="one measurement each")
    for name, text in (
        ("draft_vocab_size", "trim the drafter's vocabulary to so many tokens (default: not at all)"),
        ("hidden_size", "of the target"),
        ("num_draft_layers", "residual blocks of the drafter"),
        ("beam_length", "depths"),
        ("batch_size", "windows"),
        ("window", "tokens per window"),
        ("chunk", "positions per window that the lean step takes at a time"),
        ("rounds", "of both forms, after one that is not counted"),
        ("threads", "of torch on a CPU"),
        ("seed", "of weights and signals"),
    ):
        value = getattr(default, name)
        shown = "" if value is None else f" (default: {value})"
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value, help=text + shown)
    parser.add_argument("--label-share", type=float, default=default.label_share, help="cross-entropy's share (0)")
    parser.add_argument("--device", default=default.device, help="cpu or cuda (default: cpu)")
    parser.add_argument(
        "--out", type=user_path, default=RESULTS, help="folder for the record (default: benchmarks/results)"
    )
    args = vars(parser.parse_args(argv))
    out = args.pop("out")
    return replace(default, **args | {"vocab_sizes": tuple(args["vocab_sizes"])}), out


def main(argv: Sequence[str] | None = None) -> Path:
    argv = sys.argv[1:] if argv is None else argv
    options, out = parse_args(argv)
    report = run(options)
    file = record("training_step", argv, report, out, options.device)
    print(f"{'vocabulary':>10} {'form':>16} {'s/step':>8} {'CPU s':>7} {'positions/s':>12} {'peak MiB':>9}")
    for row in report["results"]:
        for form in FORMS:
            own = row[form]
            times = f"{own['seconds']:>8.3f} {own['cpu_seconds']:>7.3f} {own['positions_per_second']:>12.1f}"
            print(f"{row['vocab_size']:>10} {form:>16} {times} {own['peak_mib']:>9.0f}")
    print(file)
    return file


if __name__ == "__main__":
    main()
