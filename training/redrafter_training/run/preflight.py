# SPDX-License-Identifier: Apache-2.0
"""Checks before a training: that the target exists, that outputs can be written, that memory and disks suffice."""

import os
from pathlib import Path

import torch
from transformers import AutoTokenizer

from redrafter_training.config.job import Job
from redrafter_training.hidden_states.store import MANIFEST
from redrafter_training.run.plan import Plan
from redrafter_training.target.properties import TargetFactsError, load_config
from redrafter_training.trainer.export import is_of_run
from redrafter_training.utils.folder_lock import LOCK
from redrafter_training.utils.memory import free_memory, readable
from redrafter_training.utils.run_folder import check_run_folder, run_name
from redrafter_vllm.checkpoint.places import check_drafter_place
from redrafter_vllm.utils.atomic import is_unfinished
from redrafter_vllm.utils.messages import sentence
from redrafter_vllm.utils.paths import PlaceError, check_writable, existing_folder, free_space

STATES_AT_ONCE = 3  # the two newest checkpoints, and the one being written
EXPORTED_BYTES = 2  # per parameter


class TargetNotFoundError(ValueError):
    """The target is not a model, or does not exist."""


def check_target(target: str, *, trust_remote_code: bool = False) -> None:
    """Raises TargetNotFoundError unless configuration and tokenizer of `target` can be loaded."""
    folder = Path(target)
    if not folder.is_dir() and (folder.is_absolute() or target.startswith(".") or target.count("/") > 1):
        raise TargetNotFoundError(f"the target folder {target} does not exist")
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise TargetNotFoundError(f"{target} has no config.json: the target must be the folder of a model")
    try:
        load_config(target, trust_remote_code=trust_remote_code)
        AutoTokenizer.from_pretrained(target, trust_remote_code=trust_remote_code)
    except TargetFactsError as problem:
        raise TargetNotFoundError(str(problem)) from problem
    except Exception as problem:  # of dozens of types: damaged files, unknown models, no network
        kind = "" if folder.is_dir() else ", which is not a local folder either,"
        raise TargetNotFoundError(f"the target {target}{kind} cannot be loaded: {sentence(problem)}") from problem


def check_places(job: Job) -> None:
    """Checks that drafter, run and hidden states can be written without loss; writes nothing.

    Raises:
        PlaceError: a folder contains something else, is inside another output, or cannot be written.
    """
    replace = job.overwrite or is_of_run(job.out_dir, run_name(job.run_folder))
    check_apart(job)
    check_drafter_place(job.out_dir, replace=replace)
    check_run_folder(job.run_folder)
    cache = job.hidden_cache
    if cache is not None:
        check_writable(cache)
        names = [entry.name for entry in cache.iterdir()] if cache.is_dir() else []
        if MANIFEST not in names and any(name != LOCK and not is_unfinished(name) for name in names):
            raise PlaceError(f"{cache} holds something else than hidden states: choose another --hidden-cache")


def check_apart(job: Job) -> None:
    """Raises PlaceError if one output would be inside the folder of another."""
    places = [("--out", job.out_dir), ("--run-dir", job.run_folder)]
    places += [("--hidden-cache", job.hidden_cache)] if job.hidden_cache else []
    for inner, place in places:
        for outer, around in places:
            # The run folder may contain the others.
            holds = outer == "--run-dir" and place.resolve() != around.resolve()
            if inner != outer and not holds and is_inside(place, around):
                raise PlaceError(f"{inner} {place} is inside {outer} {around}: choose a separate folder")


def is_inside(place: Path, folder: Path) -> bool:
    """Whether `place` is `folder` or inside it, with links followed."""
    return place.resolve().is_relative_to(folder.resolve())


def check_room(job: Job, plan: Plan, device: torch.device) -> None:
    """Checks that memory and disks have room for the drafter.

    The target is checked when it is loaded, hidden states when their exact size is known.

    Raises:
        PlaceError: checkpoints and drafter do not fit on a disk.
        ValueError: the drafter in training does not fit in the memory of `device`.
    """
    training = plan.memory["drafter's weights and gradients"] + plan.memory["optimizer"]
    free_here = None if job.on_ray else free_memory(device)
    if free_here is not None and training > free_here:
        raise ValueError(
            f"the drafter needs {readable(training)} for weights, gradients and optimizer, and {device} has "
            f"{readable(free_here)} free: choose a smaller --exit-dim or --num-draft-layers, or trim the vocabulary "
            "with --draft-vocab-size"
        )
    weights = plan.memory["drafter's weights and gradients"] // 2
    state = weights * (2 if job.patience else 1) + plan.memory["optimizer"]  # with the weights of the best evaluation
    stored = sum(file.stat().st_size for file in job.checkpoints.glob("*/*") if file.is_file())
    needs = [(job.run_folder, max(state, STATES_AT_ONCE * state - stored))]
    needs.append((job.out_dir, plan.drafter_parameters * EXPORTED_BYTES))
    by_disk: dict[int, int] = {}
    for place, needed in needs:
        disk = os.stat(existing_folder(place)).st_dev
        by_disk[disk] = by_disk.get(disk, 0) + needed
        if by_disk[disk] > (free := free_space(place)):
            raise PlaceError(
                f"checkpoints and drafter need {readable(by_disk[disk])} and {place} has {readable(free)} free: free "
                "some space, or choose other folders with --run-dir and --out"
            )
