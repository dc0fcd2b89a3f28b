# SPDX-License-Identifier: Apache-2.0
"""`python -m redrafter_vllm.convert SRC DST [--allow-pickle]`: any spelling of a drafter checkpoint into Apple's."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor

from redrafter_vllm import checkpoint
from redrafter_vllm.draft_vocabulary import MAP, check_map, check_map_header
from redrafter_vllm.drafter import DrafterConfig
from redrafter_vllm.places import user_path

_INTEGERS = {torch.int32: "I32", torch.int64: "I64"}


def convert(source: Path, destination: Path, *, allow_pickle: bool = False) -> DrafterConfig:
    """Writes the drafter of `source` to the new directory `destination`, in the stored type.

    A pickle is read only with `allow_pickle`, and then as bare tensors. Raises CheckpointError as loading does, and
    when `destination` already holds a config, which may be a target's.
    """
    if (destination / checkpoint.CONFIG_FILE).exists():
        raise checkpoint.CheckpointError(
            f"{destination} already holds a {checkpoint.CONFIG_FILE}: give a new directory."
        )
    has_safetensors = source.is_dir() and any(source.glob("*.safetensors"))
    if allow_pickle and source.is_dir() and not has_safetensors:
        config, tensors = _load_pickle(source)
    else:
        config, tensors = checkpoint.load_checkpoint(source)
    checkpoint.save_checkpoint(destination, config, tensors)
    return config


def _load_pickle(source: Path) -> tuple[DrafterConfig, dict[str, Tensor]]:
    config, inside_target = checkpoint.read_config(source)
    stored: dict[str, Tensor] = {}
    files = checkpoint.pickle_files(source)
    if not files:
        raise checkpoint.CheckpointNotFoundError(f"{source} holds neither safetensors nor pickled weights.")
    for file in files:
        stored |= _read_pickle(file)
    names = checkpoint.canonical_entries(str(source), stored, config, inside_target)
    tensors = {name: stored[stored_name] for name, stored_name in names.items()}
    checkpoint.check_shapes(str(source), config, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    offsets = tensors.get(MAP)
    if offsets is None:
        check_map_header(str(source), config.draft_vocab_size, None)
    else:
        dtype = _INTEGERS.get(offsets.dtype, str(offsets.dtype))
        check_map_header(str(source), config.draft_vocab_size, (MAP, tuple(offsets.shape), dtype))
        check_map(f"{MAP} in {source}", offsets, config.vocab_size)
    for name, tensor in tensors.items():
        checkpoint.check_finite(f"{name} in {source}", tensor)
    return config, tensors


def _read_pickle(file: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise checkpoint.UnreadableWeightsError(
            f"{file} cannot be read as a pickle of tensors alone ({reason}): save its state_dict by itself."
        ) from None
    for wrapper in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise checkpoint.UnreadableWeightsError(f"{file} holds no dictionary of tensors: save a state_dict there.")
    return content


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m redrafter_vllm.convert", description=__doc__)
    parser.add_argument(
        "source", metavar="SRC", type=user_path, help="directory with the drafter, or a target that holds one"
    )
    parser.add_argument(
        "destination", metavar="DST", type=user_path, help="new directory for Apple's layout in safetensors"
    )
    parser.add_argument("--allow-pickle", action="store_true", help="read *.bin, *.pt and *.pth as well")
    arguments = parser.parse_args(argv)
    try:
        config = convert(arguments.source, arguments.destination, allow_pickle=arguments.allow_pickle)
    except checkpoint.CheckpointError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{arguments.destination}: {config}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
