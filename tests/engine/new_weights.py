# SPDX-License-Identifier: Apache-2.0
"""Shared by the tests of new weights: other drafters of the served shape, and products with plain tensors."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from redrafter_vllm.checkpoint.io import check_checkpoint
from redrafter_vllm.integration.worker import drafter_loading
from redrafter_vllm.integration.worker.parallel import load_part
from redrafter_vllm.integration.worker.speculator import RedrafterSpeculator
from redrafter_vllm.model.drafter import Drafter
from redrafter_vllm.model.packed import plain_linear
from tests.engine.generation import runner


def save_drafter_like(served: Path, path: Path, *, seed: int = 1, **changes: Any) -> Path:
    """A random drafter with the config of the one at `served`, except for `changes`."""
    torch.manual_seed(seed)
    drafter = Drafter(replace(check_checkpoint(served), **changes))
    for parameter in drafter.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    drafter.save_pretrained(path)
    return path


@contextmanager
def drafting_with(llm: Any, path: Path, served: Path) -> Iterator[None]:
    """Within it `llm`, which other tests use as well, drafts with `path` instead of `served`."""
    llm.collective_rpc("reload_drafter", args=(str(path),))
    try:
        yield
    finally:
        llm.collective_rpc("reload_drafter", args=(str(served),))


@contextmanager
def weights_in_tensors(llm: Any) -> Iterator[RedrafterSpeculator]:
    """As on a GPU: weights are plain tensors, not in a layout of the CPU's kernels; torch multiplies."""
    speculator: RedrafterSpeculator = runner(llm).speculator
    config = speculator.vllm_config
    with patch.object(drafter_loading, "_unquantized_linear", plain_linear):
        drafter = load_part(config.speculative_config.checkpoint, speculator.drafting, config, speculator.device)
        with patch.object(speculator, "drafter", drafter):
            yield speculator


def addresses(speculator: RedrafterSpeculator) -> dict[str, int]:
    return {name: tensor.data_ptr() for name, tensor in speculator.tensors().items()}
