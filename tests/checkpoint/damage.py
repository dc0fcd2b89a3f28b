# SPDX-License-Identifier: Apache-2.0
"""Damages valid checkpoints, and checks how they are refused."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from redrafter_vllm import Drafter
from redrafter_vllm.checkpoint import errors
from redrafter_vllm.checkpoint import io as checkpoint


def edit_tensors(directory: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(directory / "model.safetensors")
    edit(tensors)
    save_file(tensors, directory / "model.safetensors")


def edit_config(directory: Path, edit: Callable[[dict], object]) -> None:
    config = json.loads((directory / "config.json").read_text())
    edit(config)
    (directory / "config.json").write_text(json.dumps(config))


def refused(directory: Path, error: type[errors.CheckpointError], *words: str) -> None:
    """Refused by the check of headers and by loading, in one sentence that contains all of `words`."""
    for read in (checkpoint.check_checkpoint, Drafter.from_pretrained):
        with pytest.raises(error) as caught:
            read(directory)
        message = str(caught.value)
        assert type(caught.value) is error
        assert all(word in message for word in (*words, str(directory)))
        assert "\n" not in message
        assert len(message) <= 1000
        assert message.endswith(".")
