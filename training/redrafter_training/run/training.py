# SPDX-License-Identifier: Apache-2.0
"""One training from start to end: the work of each process, and the export and evaluation afterwards."""

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

from redrafter_training.config.job import Job
from redrafter_training.config.recipe import DistillConfig
from redrafter_training.data.prepare import examples_file, prepare_examples
from redrafter_training.data.report import DataError
from redrafter_training.data.vocab_mapping import choose_draft_vocabulary
from redrafter_training.distributed import checkpoints
from redrafter_training.distributed.context import LocalContext, TrainContext
from redrafter_training.hidden_states.target import open_cached_target
from redrafter_training.run.epochs import check_epochs
from redrafter_training.run.evaluation import HeldOutFigures, held_out_figures
from redrafter_training.run.feed import Feed, holds_conversations, open_feed
from redrafter_training.run.feed_settings import FeedSettings
from redrafter_training.run.finish import Evaluate, Outcome, Report, finish
from redrafter_training.run.hub import check_repository
from redrafter_training.run.inputs import input_fingerprints
from redrafter_training.run.plan import data_note, make_plan
from redrafter_training.run.preflight import check_places, check_room, check_target
from redrafter_training.run.trackers import Logs, begin_runs, check_trackers
from redrafter_training.target.loading import load_target, target_dtype
from redrafter_training.target.model import DeferredTarget, Target, TargetModel
from redrafter_training.trainer.divergence import DivergedError
from redrafter_training.trainer.loop import Hooks, add_blocks, build_drafter, distill, use_target_head
from redrafter_training.trainer.metrics import depth_figures
from redrafter_training.trainer.state import STATE_FILE, check_identity, read_state
from redrafter_training.utils.command import Interruption, TrainingStoppedError
from redrafter_training.utils.run_folder import KEYS_FILE, held, run_name
from redrafter_vllm.checkpoint.io import check_against_target
from redrafter_vllm.model.drafter import Drafter
from redrafter_vllm.utils.atomic import write_text
from redrafter_vllm.utils.install import install_training


def train_worker(
    job: Job,
    config: DistillConfig,
    inputs: Mapping[str, Any],
    context: TrainContext,
    model: DeferredTarget | None = None,
) -> Outcome:
    """The training in one process.

    Args:
        inputs: see `input_fingerprints`.
        model: the job's target, to be used again afterwards.

    Raises:
        FloatingPointError: the training has diverged; names the file with the batch that did it.
        ResumeError, CheckpointWriteError, TrainingStoppedError, ValueError: see `distill`, `open_feed` and
            `initial_drafter`.
    """
    tokenizer = AutoTokenizer.from_pretrained(job.target, trust_remote_code=job.trust_remote_code)
    model = model or deferred_target(job, config, context)
    examples = examples_file(job, config.window, inputs)
    computes = (str(target_dtype(job, context.device)), job.target_quantization)
    settings = FeedSettings.of(job, config, target=inputs["target"], examples=examples, computes=computes)
    feed = open_feed(settings, model, tokenizer, context)
    identity = job.identity(config) | {"inputs": inputs}
    config = config.with_steps(feed.steps_per_epoch)
    if job.patience and not len(feed.held_out):
        raise DataError("--patience needs held-out text to measure on, and this data has none: leave it out")
    target: Target = model
    if job.hidden_cache is not None:
        target = open_cached_target(job, config, context, model, feed.batches, feed.held_out)
    drafter, facts = initial_drafter(target, feed, job, config)
    first = context.rank == 0
    logs = Logs(job if first else None, log_settings(job, config), purge_step=_last_step(job) if first else None)
    hooks = Hooks(
        evaluate=partial(_held_out_figures, feed=feed, target=target, config=config, context=context)
        if len(feed.held_out)
        else None,
        evaluate_every=job.evaluate_every,
        patience=job.patience,
        checkpoint_every=job.checkpoint_every,
        log_every=job.log_every,
        log=logs.log,
        steps_per_epoch=feed.steps_per_epoch,
        identity=identity,
        max_rise=job.max_rise,
    )
    state = "failed"
    try:
        distill(drafter, target, feed.batches, config, context=context, hooks=hooks, quiet=not first)
        state = "running"
    except DivergedError as problem:
        path = problem.store_batch(job.run_folder, context.rank)
        raise FloatingPointError(f"{problem}; its batch is in {path}") from None
    except TrainingStoppedError:
        state = "stopped"
        raise
    finally:
        logs.close(state)
    return Outcome(asdict(drafter.config), feed.facts | facts, feed.prompts, feed.steps_per_epoch)


def log_settings(job: Job, config: DistillConfig) -> dict[str, Any]:
    """What trackers show of a training's settings."""
    return {"target": job.target, "data": job.data, "num_workers": str(job.num_workers), **asdict(config)}


def deferred_target(job: Job, config: DistillConfig, context: TrainContext) -> DeferredTarget:
    """The job's target, loaded when it is first needed."""
    return DeferredTarget(partial(_load_target, job, config, context.device, context.devices))


def _load_target(
    job: Job, config: DistillConfig, device: torch.device, devices: Sequence[torch.device] | None = None
) -> TargetModel:
    tokenizer = AutoTokenizer.from_pretrained(job.target, trust_remote_code=job.trust_remote_code)
    training_bytes = make_plan(job, config, device).training_memory if job.target_gpus > 1 else 0
    return load_target(job, device, devices, tokenizer, training_bytes=training_bytes)


def initial_drafter(target: Target, feed: Feed, job: Job, config: DistillConfig) -> tuple[Drafter, dict[str, object]]:
    """A new drafter, or the one to start from; and facts about its vocabulary for `training.json`.

    Raises:
        TargetMismatchError: the drafter to start from is for a target of other sizes.
    """
    if job.init_from is not None:
        drafter = Drafter.from_pretrained(job.init_from, device=target.device)
        check_against_target(drafter.config, hidden_size=target.hidden_size, vocab_size=target.vocab_size)
        drafter = add_blocks(drafter, config.num_draft_layers - drafter.config.num_draft_layers)
        if config.target_head:
            use_target_head(drafter, target)
        return drafter, {}
    if config.draft_vocab_size is None:
        return build_drafter(target, config), {}
    chosen = choose_draft_vocabulary(feed.frequencies(target.vocab_size), config.draft_vocab_size)
    return build_drafter(target, config, chosen.tokens), {"draft_vocabulary_coverage": chosen.coverage}


def run(job: Job, config: DistillConfig, recipe: str, keys: str, interruption: Interruption) -> Report:
    """Trains, exports the drafter with its `training.json`, evaluates it and adds the figures.

    All checks that are possible beforehand are done before anything is written or changed.

    Args:
        keys: the content for `config.yaml` in the run folder.

    Raises:
        PlaceError, TargetNotFoundError: see `redrafter_training.run.preflight`.
        FolderInUseError: another training uses the run folder.
        KeyboardInterrupt: a signal arrived before the first step, or after the last.
    """
    started = time.monotonic()
    check_start(job, config)
    device = local_device(job)
    check_room(job, make_plan(job, config, device), device)
    if note := data_note(job):
        print(note)
    inputs = input_fingerprints(job, config)
    with held(job.run_folder):
        newest = checkpoints.latest(job.checkpoints)
        if job.resume and newest is not None:
            check_identity(read_state(newest, mmap=True), job.identity(config) | {"inputs": inputs})
        begin_runs(job, log_settings(job, config), continued=job.resume and newest is not None)
        write_text(job.run_folder / KEYS_FILE, keys)
        outcome, evaluate = _launch(job, config, inputs, interruption)
        return finish(job, config, recipe, inputs["target"], outcome, evaluate, started)


def check_start(job: Job, config: DistillConfig) -> None:
    """Checks of places, target and libraries that take no more than seconds and write nothing.

    Raises PlaceError, TargetNotFoundError, TrackerError, HubError or ValueError.
    """
    check_epochs(job, config)
    check_trackers(job)
    check_places(job)
    check_target(job.target, trust_remote_code=job.trust_remote_code)
    if job.push_to_hub is not None:
        check_repository(job.push_to_hub, run_name(job.run_folder), overwrite=job.overwrite)


def local_device(job: Job) -> torch.device:
    return torch.device("cuda" if job.device != "cpu" and torch.cuda.is_available() else "cpu")


def _launch(
    job: Job, config: DistillConfig, inputs: Mapping[str, Any], interruption: Interruption
) -> tuple[Outcome, Evaluate]:
    """Trains; returns the result, and a function that evaluates the drafter on its target."""
    if not job.on_ray:
        return _launch_here(job, config, inputs, interruption)
    try:
        from redrafter_training.distributed.ray_train import Fleet, call_on_ray, connect, has_gpus, run_on_ray
    except ImportError as problem:
        raise ValueError(f"several workers need Ray: {install_training()} ({problem})") from None
    connect(job.ray_address, num_cpus=job.workers[1])
    _prepare(job, config, inputs)
    use_gpu = job.device == "cuda" or (job.device == "auto" and has_gpus(job.workers[0] * job.target_gpus))
    fleet = Fleet(job.num_workers, use_gpu, job.max_failures, gpus_per_worker=job.target_gpus)
    job, config = job.absolute(), config.absolute()
    train = partial(train_worker, job, config, inputs)
    outcome = run_on_ray(train, job.checkpoints, fleet, resume=job.resume, interruption=interruption)
    return outcome, lambda drafter, prompts: call_on_ray(partial(_evaluate, job, config, drafter, prompts), fleet)


def _launch_here(
    job: Job, config: DistillConfig, inputs: Mapping[str, Any], interruption: Interruption
) -> tuple[Outcome, Evaluate]:
    device = local_device(job)
    if job.device == "cuda" and device.type != "cuda":
        raise ValueError("--device cuda: torch finds no GPU on this machine")
    if not job.resume:
        shutil.rmtree(job.checkpoints, ignore_errors=True)
    _prepare(job, config, inputs)
    context = LocalContext(job.checkpoints, device, interruption=interruption)
    target = deferred_target(job, config, context)
    outcome = train_worker(job, config, inputs, context, target)
    return outcome, lambda drafter, prompts: held_out_figures(target, drafter, prompts, config.beam_length)


def _evaluate(
    job: Job, config: DistillConfig, drafter: Drafter, prompts: Sequence[Tensor], device: torch.device
) -> HeldOutFigures:
    return held_out_figures(_load_target(job, config, device), drafter, prompts, config.beam_length)


def _prepare(job: Job, config: DistillConfig, inputs: Mapping[str, Any]) -> None:
    if holds_conversations(job.data):
        prepare_examples(job, config.window, inputs)


def _held_out_figures(
    drafter: Drafter, step: int, *, feed: Feed, target: Target, config: DistillConfig, context: TrainContext
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
    return (
        int(read_state(newest, mmap=True)["step"]) if newest is not None and (newest / STATE_FILE).is_file() else None
    )
