# SPDX-License-Identifier: Apache-2.0
"""The pair in a shape of about a billion parameters, where reading the weights takes most of a step."""

import shutil
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.demo.pair import Pair
from benchmarks.demo.progress import working
from benchmarks.models.inflate.build import DRAFTER_FOLDER, RECORD_FILE, Inflation, Options
from redrafter_training.utils.memory import free_memory, readable
from redrafter_vllm.predict.shapes import SHAPES, ShapeError
from redrafter_vllm.utils.paths import free_space

SHAPE_NAMES = ("smollm2-1b", "llama-1b")
MEMORY_NEEDED = 5 << 30  # bytes: the weights, as they are loaded and as vLLM's CPU kernels pack them, and the engine


def inflate(pair: Pair, folder: Path, console: Console) -> Pair | None:
    """The same function with about a billion parameters, in `folder`; None, after one sentence, if that cannot be.

    A folder of an earlier demonstration is replaced.
    """
    try:
        inflation = _plan(pair, folder)
        _check_room(inflation, folder)
    except ShapeError as problem:
        console.print(f"The pair is not inflated: {problem}", markup=False, soft_wrap=True)
        return None
    if (folder / RECORD_FILE).is_file():
        shutil.rmtree(folder)
    billions = inflation.options.shape.num_parameters / 1e9
    with working(f"inflating the target to {billions:.2f} billion parameters that emit the same tokens", console):
        inflation.write()
    return Pair(folder, folder / DRAFTER_FOLDER)


def _plan(pair: Pair, folder: Path) -> Inflation:
    problems = []
    for name in SHAPE_NAMES:
        try:
            return Inflation(Options(pair.target, SHAPES[name], folder, pair.drafter))
        except ShapeError as problem:
            problems.append(str(problem))
    raise ShapeError(problems[0])


def _check_room(inflation: Inflation, folder: Path) -> None:
    memory, disk = free_memory(torch.device("cpu")), free_space(folder)
    if memory is not None and memory < MEMORY_NEEDED:
        raise ShapeError(f"that needs {readable(MEMORY_NEEDED)} of free memory, and there are {readable(memory)}.")
    if disk < inflation.total_bytes:
        raise ShapeError(f"that needs {readable(inflation.total_bytes)} of disk space, and there are {readable(disk)}.")
