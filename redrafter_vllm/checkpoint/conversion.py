# SPDX-License-Identifier: Apache-2.0
"""Converts a drafter checkpoint with any of the known tensor names to Apple's layout."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from redrafter_vllm.checkpoint import errors
from redrafter_vllm.checkpoint import io as checkpoint
from redrafter_vllm.checkpoint.card import CardTarget, card_metadata, describe_target, place_name, write_card
from redrafter_vllm.checkpoint.config import DrafterConfig
from redrafter_vllm.checkpoint.files import is_directory, pickle_files
from redrafter_vllm.checkpoint.vocab_mapping import MAP, check_map, check_map_header, map_header
from redrafter_vllm.utils.messages import listed

_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def convert(source: Path, destination: Path, *, allow_pickle: bool = False) -> DrafterConfig:
    """Writes the drafter of `source` to the new or empty directory `destination`, in the stored type.

    A pickle is read only with `allow_pickle`, and then as plain tensors. Raises CheckpointError as loading does, and
    when `destination` is not empty; OSError when it cannot be written.
    """
    if destination.exists() and not (destination.is_dir() and not any(destination.iterdir())):
        raise errors.CheckpointError(f"{destination} is not empty: give a new directory.")
    has_safetensors = is_directory(source) and any(source.glob("*.safetensors"))
    if allow_pickle and is_directory(source) and not has_safetensors:
        config, tensors = _load_pickle(source)
    else:
        config, tensors = checkpoint.load_checkpoint(source)
    checkpoint.save_checkpoint(destination, config, tensors)
    write_card(destination, _card_target(source), origin=f"Converted from {place_name(str(source))}.")
    return config


def _card_target(source: Path) -> CardTarget | None:
    """The target that `source` holds beside the drafter, or that its card names."""
    if checkpoint.read_config(source)[1]:
        return describe_target(str(source))
    named = card_metadata(source).get("base_model")
    if not isinstance(named, str):
        return None
    # A name of two parts is one on the hub; the card of a drafter for a target in a folder has the folder's name.
    return replace(describe_target(str(source)), name=named, base_model=named, on_hub="/" in named)


def _load_pickle(source: Path) -> tuple[DrafterConfig, dict[str, Tensor]]:
    config, inside_target = checkpoint.read_config(source)
    stored = _read_pickles(source)
    names = checkpoint.canonical_entries(str(source), stored, config, inside_target)
    # Tensors of a pickle may be views of one another, which safetensors does not store.
    tensors = {
        name: stored[stored_name].clone(memory_format=torch.contiguous_format) for name, stored_name in names.items()
    }
    checkpoint.check_shapes(str(source), config, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    offsets = tensors.get(MAP)
    check_map_header(str(source), config.draft_vocab_size, map_header(offsets))
    if offsets is not None:
        check_map(f"{MAP} in {source}", offsets, config.vocab_size)
    for name, tensor in tensors.items():
        if name != MAP and tensor.dtype not in _FLOATS:
            raise errors.UnreadableWeightsError(
                f"{name} in {source} is stored as {tensor.dtype}: export the drafter without quantisation."
            )
        checkpoint.check_finite(f"{name} in {source}", tensor)
    return config, tensors


def _read_pickles(source: Path) -> dict[str, Tensor]:
    files = pickle_files(source)
    if not files:
        raise errors.CheckpointNotFoundError(f"{source} holds neither safetensors nor pickled weights.")
    stored: dict[str, Tensor] = {}
    for file in files:
        tensors = _read_pickle(file)
        if twice := sorted(stored.keys() & tensors.keys()):
            raise errors.SurplusTensorsError(
                f"{source} holds {listed(twice)} twice, in {file.name} and in a file before it: keep one of them."
            )
        stored |= tensors
    return stored


def _read_pickle(file: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises errors of many kinds
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise errors.UnreadableWeightsError(
            f"{file} cannot be read as a pickle of plain tensors ({reason}): save its state_dict by itself."
        ) from None
    for wrapper in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    ):
        raise errors.UnreadableWeightsError(f"{file} holds no dictionary of tensors: save a state_dict there.")
    if unusable := [name for name, tensor in content.items() if not _is_plain(tensor)]:
        raise errors.UnreadableWeightsError(
            f"{file} holds {listed(unusable)} as something other than a plain tensor in memory: save dense tensors."
        )
    return content


def _is_plain(tensor: Tensor) -> bool:
    """Whether it is dense and has as many bytes in the file as its shape implies: a view may claim any size."""
    if tensor.is_nested or tensor.is_quantized or tensor.layout != torch.strided or tensor.device.type != "cpu":
        return False
    return tensor.untyped_storage().nbytes() >= tensor.numel() * tensor.element_size()
