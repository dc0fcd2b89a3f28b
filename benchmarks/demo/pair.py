# SPDX-License-Identifier: Apache-2.0
"""The target and the drafter that are shown."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from benchmarks.assets import ASSET, DRAFTER, ROOT, SMOLLM2_DRAFTER
from benchmarks.demo.options import DemoOptions
from benchmarks.demo.train import train_drafter
from redrafter_training.smollm2 import NAME, FetchError, default_folder, fetch
from redrafter_vllm.checkpoint.io import check_against_target, check_checkpoint
from redrafter_vllm.checkpoint.locate import resolve_drafter
from redrafter_vllm.predict.shapes import CONFIG_FILE, ShapeError, find_shape
from redrafter_vllm.utils.messages import sentence
from redrafter_vllm.utils.paths import PlaceError


@dataclass(frozen=True)
class Pair:
    """Folders of a target and its drafter."""

    target: Path
    drafter: Path


def obtain_pair(options: DemoOptions, console: Console) -> Pair:
    """The given pair, SmolLM2 with its drafter, or the small pair of the repository.

    Raises:
        ValueError: The drafter cannot be used, or belongs to another target; or it was given for SmolLM2, which cannot
            be fetched.
        CalledProcessError: The training failed.
    """
    if options.train is not None:
        pair = Pair(ASSET, train_drafter(ASSET, options.train, options.out / "drafter", console))
    elif options.target is not None:
        pair = Pair(options.target, resolve_drafter(options.drafter, str(options.target)))
    else:
        pair = _smollm2_or_small(options.drafter, console)
    pair = Pair(pair.target.resolve(), pair.drafter.resolve())
    _check(pair)
    console.print(f"target: {pair.target}\ndrafter: {pair.drafter}", markup=False, highlight=False, soft_wrap=True)
    return pair


def _check(pair: Pair) -> None:
    """Raises ValueError before a server is started; a target that is like no Llama is left to vLLM's own start."""
    drafter = check_checkpoint(pair.drafter)
    with suppress(ShapeError):
        shape = find_shape(str(pair.target))
        check_against_target(drafter, hidden_size=shape.hidden_size, vocab_size=shape.vocab_size)


def _smollm2_or_small(given: Path | None, console: Console) -> Pair:
    drafter = given or SMOLLM2_DRAFTER
    try:
        if not (drafter / CONFIG_FILE).is_file():
            raise FetchError(
                f"the repository holds no drafter for {NAME} yet (redrafter pipeline trains one for --drafter)"
            )
        return Pair(_fetched(console), drafter)
    except (FetchError, PlaceError, OSError) as problem:
        if given is not None:
            raise ValueError(sentence(problem)) from problem
        small = ASSET.relative_to(ROOT)
        said = f"{sentence(problem)}; going on with the small pair of the repository, {small}"
        console.print(said, markup=False, soft_wrap=True)
        return Pair(ASSET, ASSET / DRAFTER)


def _fetched(console: Console) -> Path:
    folder = default_folder()
    if not folder.is_dir():
        console.print(f"fetching {NAME} (93 MB) and converting it, once; it stays in {folder}", soft_wrap=True)
    return fetch(folder)
