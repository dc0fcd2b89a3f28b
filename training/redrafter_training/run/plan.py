# SPDX-License-Identifier: Apache-2.0
"""The plan of a training: sizes, steps, memory."""

import math
from dataclasses import dataclass, replace

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from redrafter_training.config.job import Job
from redrafter_training.config.recipe import DistillConfig
from redrafter_training.hidden_states.store import max_bytes
from redrafter_training.responses.store import is_response_folder
from redrafter_training.run.data_summary import ignored_files
from redrafter_training.run.trackers import trackers
from redrafter_training.target.loading import model_without_weights, target_dtype
from redrafter_training.target.properties import read_facts
from redrafter_training.utils.memory import GIB, readable, weight_bytes
from redrafter_vllm.checkpoint.config import DrafterConfig
from redrafter_vllm.checkpoint.io import check_checkpoint
from redrafter_vllm.model.drafter import Drafter
from redrafter_vllm.utils.paths import free_space

FLOAT32 = 4


@dataclass(frozen=True)
class Plan:
    """Sizes in parameters and bytes; memory is per worker."""

    drafter: DrafterConfig
    target_parameters: int
    drafter_parameters: int
    tokens_per_step: int
    memory: dict[str, int]
    hidden_cache: int  # bytes on disk at most; 0 also where the number of steps is not known

    @property
    def total_memory(self) -> int:
        return sum(self.memory.values())

    @property
    def training_memory(self) -> int:
        """Bytes of everything except the target's weights."""
        return self.total_memory - self.memory["target's weights"]


def make_plan(job: Job, config: DistillConfig, device: torch.device) -> Plan:
    """The plan of a job, from the target's configuration without its weights."""
    check_window(job, config)
    target = model_without_weights(job.target, trust_remote_code=job.trust_remote_code)
    text = target.config.get_text_config()
    width = config.drafter_width(text.hidden_size)  # also refuses another width of the drafter to start from
    shape = (
        replace(check_checkpoint(job.init_from), num_draft_layers=config.num_draft_layers)
        if job.init_from is not None
        else DrafterConfig(
            vocab_size=text.vocab_size,
            hidden_size=text.hidden_size,
            exit_dim=width,
            num_draft_layers=config.num_draft_layers,
            rnn=config.rnn,
            draft_vocab_size=config.draft_vocab_size,
        )
    )
    with torch.device("meta"):
        drafter = Drafter(shape)
    cached = job.hidden_cache is not None and config.budget.max_steps is not None
    return Plan(
        shape,
        _count(target),
        _count(drafter),
        config.batch_size * config.window,
        estimate_memory(
            drafter,
            config,
            config.rows_at_once(job.workers[0]),
            weight_bytes(target, target_dtype(job, device).itemsize, job.target_quantization),
        ),
        max_bytes(config, text.hidden_size, job.evaluate_windows) if cached else 0,
    )


def check_window(job: Job, config: DistillConfig) -> None:
    """Raises TargetFactsError if the target cannot be read or the window is longer than its texts may be."""
    facts = read_facts(job.target, trust_remote_code=job.trust_remote_code)
    facts.check_length(config.window, "--window")


def estimate_memory(drafter: Drafter, config: DistillConfig, rows: int, target_bytes: int) -> dict[str, int]:
    """Estimated bytes of one worker by purpose, from the shapes, without allocator overhead and attention.

    Weights, gradients, one moment per inner matrix (Muon), two for all other parameters (AdamW), the target's logits
    of the rows computed at once in half precision, and a chunk's logits in float32: the drafter's at one depth with its
    softmax and gradient, the target's with its softmax.
    """
    shape = drafter.config
    output = sum(p.numel() for p in drafter.parameters() if p.dim() != 2 or p is drafter.output.weight)
    inner = _count(drafter) - output
    chunk = rows * min(config.chunk, config.window)
    return {
        "target's weights": target_bytes,
        "embedding in float32": shape.vocab_size * shape.hidden_size * FLOAT32,
        "drafter's weights and gradients": 2 * _count(drafter) * FLOAT32,
        "optimizer": (inner + 2 * output) * FLOAT32,
        "target's logits": rows * config.window * shape.vocab_size * 2,
        "logits of a chunk": chunk * 5 * shape.output_size * FLOAT32,
    }


def print_plan(
    job: Job,
    config: DistillConfig,
    recipe: str,
    plan: Plan,
    texts: str,
    console: Console,
    epochs: str | None = None,
) -> None:
    """Prints the plan as a table.

    Args:
        config: with a number of steps.
        texts: the result of `describe_data`.
        epochs: where the number of steps is from.
    """
    min_workers, max_workers = job.workers
    where = (
        "this process"
        if not job.on_ray
        else f"{min_workers} to {max_workers} Ray workers"
        if min_workers < max_workers
        else f"{max_workers} Ray workers"
    )
    shape = plan.drafter
    budget = config.budget
    clock = "" if math.isinf(budget.max_seconds) else f" or {budget.max_seconds:g} s, whichever ends first"
    table = Table(title="plan", show_header=False, title_justify="left")
    for name, value in (
        ("target", f"{job.target}: {plan.target_parameters:,} parameters"),
        ("data", " ".join((job.data, *(f"{key} {value}" for key, value in job.choices.items())))),
        *((("ignored files", note),) if (note := data_note(job)) else ()),
        ("texts", texts),
        ("recipe", recipe),
        (
            "drafter",
            f"{plan.drafter_parameters:,} parameters: hidden {shape.hidden_size}, vocabulary {shape.output_size}, head "
            f"{shape.exit_dim} x {shape.num_draft_layers}{', from ' + str(job.init_from) if job.init_from else ''}",
        ),
        ("steps", f"{budget.steps:,}{f': {epochs}' if epochs else ''}{clock}"),
        ("per step", _step_line(config, plan)),
        (
            "all steps",
            f"at most {budget.steps * plan.tokens_per_step:,} tokens, {config.beam_length} draft tokens each",
        ),
        *((("early stop", _early_line(job)),) if job.patience else ()),
        ("target's own text", _responses_line(config, job.data)),
        ("workers", where),
        ("drafter is stored in", str(job.out_dir)),
        ("run folder", str(job.run_folder)),
        ("logs", ", ".join(("TensorBoard", *trackers(job)))),
        *((("pushed to the hub", job.push_to_hub),) if job.push_to_hub else ()),
        *((("hidden states", _cache_line(job, plan)),) if job.hidden_cache else ()),
    ):
        table.add_row(name, value)
    console.print(table)
    memory = Table(title="memory per worker, estimated", show_header=False, title_justify="left")
    memory.add_column()
    memory.add_column(justify="right")
    for name, size in plan.memory.items():
        memory.add_row(name, f"{size / GIB:.2f} GiB")
    memory.add_section()
    memory.add_row("together", f"{plan.total_memory / GIB:.2f} GiB")
    console.print(memory)


def data_note(job: Job) -> str | None:
    """See `ignored_files`."""
    splits = (job.data_split, *((job.held_out_split,) if job.held_out_split else ()))
    return ignored_files(job.data, config=job.data_config, splits=splits)


def _step_line(config: DistillConfig, plan: Plan) -> str:
    parts = "" if config.micro_batch_size is None else f", at most {config.micro_batch_size} rows at once in a worker"
    return f"{config.batch_size} rows of {config.window} tokens = {plan.tokens_per_step:,} tokens{parts}"


def _early_line(job: Job) -> str:
    return f"after {job.patience} evaluations without a better one; one every {job.evaluate_every} steps"


def _responses_line(config: DistillConfig, data: str) -> str:
    if is_response_folder(data):
        return "all of it"
    if not config.response_fraction:
        return "none"
    source = " and ".join(config.responses.folders) or f"{config.responses.count:,} texts, generated first"
    return f"{config.response_fraction:.0%} of the rows: {source}"


def _cache_line(job: Job, plan: Plan) -> str:
    assert job.hidden_cache is not None
    free = free_space(job.hidden_cache)
    full = ", which is not enough" if plan.hidden_cache > free else ""
    return f"{job.hidden_cache}: at most {readable(plan.hidden_cache)}; {readable(free)} free{full}"


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
