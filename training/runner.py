# SPDX-License-Identifier: Apache-2.0
"""One training from start to end: what each process does, and what is done once afterwards."""

import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

from redrafter_vllm.checkpoint import check_against_target
from redrafter_vllm.drafter import Drafter, DrafterConfig
from training import checkpoints
from training.cached_target import open_cached_target
from training.config import DistillConfig
from training.context import LocalContext, TrainContext
from training.draft_vocabulary import choose_draft_vocabulary
from training.evaluate import Drafting, measure
from training.export import export, provenance
from training.feed import Feed, FeedSettings, holds_conversations, open_feed
from training.fingerprint import target_fingerprint
from training.frozen_target import DeferredTarget, FrozenTarget, Teacher
from training.generate import continue_prompts
from training.guard import DivergedError
from training.job import Job
from training.loop import Hooks, StepFigures, build_drafter, distill
from training.metrics import depth_figures
from training.plan import check_window, data_note
from training.plots import plot_training
from training.prepared import examples_file, prepare_examples
from training.recorder import Recorder
from training.resume import STATE_FILE, read_state
from training.target_facts import facts_of, read_facts
from training.target_loading import load_target

EXPORT_DTYPE = torch.bfloat16
EVALUATED_TOKENS = 96
TAIL = 50


@dataclass(frozen=True)
class Outcome:
    """What a finished training leaves to its launcher."""

    drafter_config: dict[str, Any]
    facts: dict[str, object]  # about the data
    tokens_per_step: dict[str, dict[str, Any]]  # by shape of the draft, empty when it was not asked for


def train_worker(job: Job, config: DistillConfig, context: TrainContext) -> Outcome:
    """Everything that one process does.

    Raises:
        FloatingPointError: the training has diverged; names the file with the batch that did it.
        ResumeError, CheckpointWriteError, ValueError: see `distill`, `open_feed` and `initial_drafter`.
    """
    tokenizer = AutoTokenizer.from_pretrained(job.target, trust_remote_code=job.trust_remote_code)
    load = partial(load_target, job, config, context.device, context.devices, tokenizer)
    target = DeferredTarget(load)
    fingerprint = context.made_by_first(partial(target_fingerprint, job.target))
    examples = examples_file(job, config.window)
    settings = FeedSettings(
        job.data,
        job.chat_template,
        config,
        job.run_folder,
        job.evaluate_windows,
        examples,
        hidden_cache=job.hidden_cache is not None,
        chat_template_kwargs=job.chat_template_kwargs,
        data_config=job.data_config,
        data_split=job.data_split,
        held_out_split=job.held_out_split,
        vocab_size=read_facts(job.target, trust_remote_code=job.trust_remote_code).vocab_size,
        keep_duplicates=job.duplicates == "keep",
        target=fingerprint,
        computes=(str(job.dtype_on(context.device)), job.target_quantization),
    )
    feed = open_feed(settings, target, tokenizer, context)
    teacher: Teacher = target
    if job.hidden_cache is not None:
        teacher = open_cached_target(job, config, context, target, feed.batches, feed.held_out)
    drafter, facts = initial_drafter(teacher, feed, job, config)
    first = context.rank == 0
    recorder = Recorder(job.run_folder / "logs" if first else None, purge_step=_last_step(job) if first else None)
    hooks = Hooks(
        evaluate=partial(_held_out_figures, feed=feed, target=teacher, config=config, context=context)
        if len(feed.held_out)
        else None,
        evaluate_every=job.evaluate_every,
        checkpoint_every=job.checkpoint_every,
        log_every=job.log_every,
        log=recorder.log,
        identity=job.identity(config) | {"target_content": fingerprint},
        max_rise=job.max_rise,
    )
    try:
        distill(drafter, teacher, feed.batches, config, context=context, hooks=hooks, quiet=not first)
    except DivergedError as problem:
        path = problem.store_batch(job.run_folder, context.rank)
        raise FloatingPointError(f"{problem}; its batch is in {path}") from None
    finally:
        recorder.close()
    measured = tokens_per_step(target, drafter, feed, config) if job.evaluate and first else {}
    return Outcome(asdict(drafter.config), feed.facts | facts, measured)


def initial_drafter(target: Teacher, feed: Feed, job: Job, config: DistillConfig) -> tuple[Drafter, dict[str, object]]:
    """A new drafter, or the one to start from; and what there is to say about its vocabulary.

    Raises:
        TargetMismatchError: the drafter to start from belongs to a target of other sizes.
    """
    if job.init_from is not None:
        drafter = Drafter.from_pretrained(job.init_from, device=target.device)
        check_against_target(drafter.config, hidden_size=target.hidden_size, vocab_size=target.vocab_size)
        return drafter, {}
    if config.draft_vocab_size is None:
        return build_drafter(target, config), {}
    chosen = choose_draft_vocabulary(feed.frequencies(target.vocab_size), config.draft_vocab_size)
    return build_drafter(target, config, chosen.tokens), {"draft_vocabulary_coverage": chosen.coverage}


def tokens_per_step(
    target: FrozenTarget, drafter: Drafter, feed: Feed, config: DistillConfig
) -> dict[str, dict[str, Any]]:
    """What greedy decoding of held-out prompts would gain from the drafter as it is exported, by shape of the draft."""
    rounded = drafter.to(EXPORT_DTYPE).to(target.embedding.dtype)
    prompts, new_tokens = fitting(feed.prompts, facts_of("", target.model.config).longest)
    continued = continue_prompts(target, prompts, new_tokens)
    texts = [(text.to(target.device), len(prompt)) for text, prompt in zip(continued, prompts, strict=True)]
    length = config.beam_length
    shapes = [Drafting(width, length, width * length) for width in (1, 4)]
    return {f"{s.beam_width}x{s.beam_length}": asdict(measure(target, rounded, texts, s)) for s in shapes}


def fitting(prompts: Sequence[Tensor], longest: float) -> tuple[list[Tensor], int]:
    """The prompts that the target can continue within its `longest` text, and by how many tokens each."""
    new_tokens = int(min(EVALUATED_TOKENS, longest // 2))
    room = [prompt for prompt in prompts if len(prompt) + new_tokens <= longest]
    # Of prompts that all fill the window, as a target of few positions may leave none other, the ends are kept.
    return room or [prompt[-int(longest - new_tokens) :] for prompt in prompts], new_tokens


def run(job: Job, config: DistillConfig, recipe: str, *, program: str = "training") -> dict[str, Any]:
    """Trains, exports the drafter with its `training.json` and returns what that holds."""
    started = time.monotonic()
    check_window(job, config)
    if note := data_note(job):
        print(note)
    outcome = _launch(job, config)
    newest = checkpoints.latest(job.checkpoints)
    if newest is None:
        raise FileNotFoundError(f"the training left no checkpoint in {job.checkpoints}")
    state = read_state(newest)
    history = [StepFigures.from_row(row) for row in state["history"].tolist()]
    evaluations = state["evaluations"]
    drafter = Drafter(DrafterConfig(**outcome.drafter_config))
    drafter.load_state_dict(state["drafter"])
    report = provenance(program) | {
        "recipe": recipe,
        "target": job.target,
        "data": outcome.facts,
        "config": asdict(config),
        "parameters": sum(p.numel() for p in drafter.parameters()),
        "steps": len(history),
        "training": tail_means(history),
        "metrics": evaluations[-1][1] if evaluations else {},
        "held_out": outcome.tokens_per_step,
        "seconds": round(time.monotonic() - started),
    }
    plot_training(history, evaluations, job.run_folder / "training.png")
    export(drafter, job.out_dir, report, EXPORT_DTYPE)
    return report


def tail_means(history: list[StepFigures]) -> dict[str, object]:
    """Means over the last steps, which one batch alone would leave noisy."""
    tail = history[-TAIL:]
    return {
        "loss": sum(f.loss for f in tail) / len(tail),
        "loss_by_depth": [sum(column) / len(tail) for column in zip(*(f.loss_by_depth for f in tail), strict=True)],
        "agreement_by_depth": [sum(column) / len(tail) for column in zip(*(f.agreement for f in tail), strict=True)],
    }


def _launch(job: Job, config: DistillConfig) -> Outcome:
    if not job.on_ray:
        device = torch.device("cuda" if job.device != "cpu" and torch.cuda.is_available() else "cpu")
        if job.device == "cuda" and device.type != "cuda":
            raise ValueError("--device cuda was asked for, and torch finds no GPU here")
        if not job.resume:
            shutil.rmtree(job.checkpoints, ignore_errors=True)
        _prepare(job, config)
        return train_worker(job, config, LocalContext(job.checkpoints, device))
    try:
        from training.launch import Fleet, connect, has_gpus, run_on_ray
    except ImportError as problem:
        raise ValueError(f"several workers need Ray: pip install 'redrafter-vllm[train]' ({problem})") from None
    connect(job.ray_address, num_cpus=job.workers[1])
    _prepare(job, config)
    use_gpu = job.device == "cuda" or (job.device == "auto" and has_gpus(job.workers[0] * job.target_gpus))
    fleet = Fleet(job.num_workers, use_gpu, job.max_failures, gpus_per_worker=job.target_gpus)
    return run_on_ray(
        partial(train_worker, job.absolute(), config.absolute()), job.checkpoints, fleet, resume=job.resume
    )


def _prepare(job: Job, config: DistillConfig) -> None:
    if holds_conversations(job.data):
        prepare_examples(job, config.window)


def _held_out_figures(
    drafter: Drafter, step: int, *, feed: Feed, target: Teacher, config: DistillConfig, context: TrainContext
) -> dict[str, float]:
    share = feed.held_out.share(context.rank, context.world_size)
    return depth_figures(
        drafter,
        target,
        share,
        config.beam_length,
        batch_size=config.batch_size,
        chunk=config.chunk,
        total=context.total,
    ).named()


def _last_step(job: Job) -> int | None:
    newest: Path | None = checkpoints.latest(job.checkpoints) if job.resume else None
    return int(read_state(newest)["step"]) if newest is not None and (newest / STATE_FILE).is_file() else None
